"""What changes when a scene does: sizes and times of its files, or what a server says of them."""

import logging
import os
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import rasterio

from landseg.errors import SceneError
from landseg.hrefs import is_remote, open_s3, s3_key

log = logging.getLogger(__name__)


def local_files(source: Any) -> tuple[str, ...]:
    """List the local files that a raster consists of, the main one first; of a mosaic of mosaics, theirs too."""
    files: dict[str, None] = {}
    found, mosaics = list(source.files), []
    while found:
        new = [file for file in found if file not in files and Path(file).exists()]
        files |= dict.fromkeys(new)
        mosaics += [file for file in new if file.lower().endswith(".vrt")]
        found = []
        if mosaics:
            with rasterio.open(mosaics.pop()) as mosaic:
                found = mosaic.files
    return tuple(files)


def stamp_of(path: str, files: Sequence[str] = ()) -> tuple[int | str, ...]:
    """Say what changes when the scene does, which consists of ``files``, the main one first.

    Raises
    ------
    SceneError
        If one of the files can't be read, or the server can't be reached.
    """
    if path.startswith(("http://", "https://")):
        return _http_stamp(path)
    if key := s3_key(path):
        try:
            (file,) = open_s3(key.partition("/")[0]).get_file_info([key])
        except OSError as error:
            # GDAL has just read it, by settings of its own.
            log.warning("whether %s changes can't be seen: %s", path, error)
            return ()
        return () if file.size is None else (file.size, file.mtime_ns)
    # A subdataset's name is not its file's.
    main = path if Path(path).exists() else next(iter(files), path)
    if is_remote(path):
        # Of gs://, az:// and archives, GDAL as rasterio has it tells neither size nor time.
        log.warning("whether %s changes can't be seen", path)
        return ()
    if not Path(main).exists():
        return ()
    # Programs that only show a scene write .aux.xml beside it.
    parts = (file for file in files[1:] if not file.lower().endswith(".aux.xml"))
    try:
        (size, time), *others = ((s.st_size, s.st_mtime_ns) for s in map(os.stat, (main, *parts)))
    except OSError as error:
        raise SceneError(f"{error.filename}, a part of {path}, can't be read", error.strerror) from error
    # However the files are spelt, and in whatever order.
    return size, time, *(number for part in sorted(others) for number in part)


def _http_stamp(url: str) -> tuple[str, ...]:
    try:
        with urllib.request.urlopen(_head_request(url), timeout=20) as answer:  # noqa: S310
            headers = (answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length"))
            return tuple(value for value in headers if value)
    except HTTPError as error:
        error.close()  # it is the answer, too
        # Refused for good: the server, or the signature in the URL, is for GET alone.
        if error.code in (400, 401, 403, 404, 405, 501):
            return ()
        raise SceneError(f"{url} can't be reached", f"its server answers {error.code}; try again later") from error
    except (OSError, HTTPException) as error:
        # Without its stamp the scene would be taken for another one.
        raise SceneError(f"{url} can't be reached", f"{error}; try again later") from error


def _head_request(url: str) -> urllib.request.Request:
    """Ask for the headers of a URL; as GDAL does, send what it has of user and password as such."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), method="HEAD")  # noqa: S310 (http or https)
    if user:
        request.add_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    return request
