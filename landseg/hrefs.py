"""Paths and URLs of scenes and catalogs: whether one leads off this machine, and what of it may be shown."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlencode, urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

# User and password before the host, and the query, which is where signatures and keys of signed URLs stand.
_URL = re.compile(r"(\w+://)(?:[^\s/]*@)?([^\s?#'\"]*)(?:[?#](?:[^\s'\"]|'(?=\w))*?(?=[:,.]?(?:\s|$|['\"](?!\w))))?")
# The query of a URL whose beginning is left out, as libraries' messages have it: /search?token=…
_QUERY = re.compile(r"(?<=\S)\?[^\s'\"=]+=(?:[^\s'\"]|'(?=\w))*?(?=[:,.]?(?:\s|$|['\"](?!\w)))")
# GDAL's form of options for one file, headers among them: /vsicurl?header.Authorization=…
_GDAL_OPTIONS = re.compile(r"(/vsi\w+)\?(?:[^'\"]*?&url=)?[^\s'\"]*")


def is_remote(href: str) -> bool:
    """Tell whether GDAL would ask a server for it, or one of its own file systems, rather than the disk."""
    return "://" in href or href.startswith("/vsi")


def check_plain(href: str | Path, refusal: type[Exception]) -> None:
    """Refuse, by an error of that type, a pipe, a socket or a device: reading it might never end."""
    path = Path(href)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise refusal(f"{href} is a pipe, a socket or a device, and no file")


def local_path(href: str) -> str:
    """Give the path that a ``file://`` URL names; others are left as they are."""
    return url2pathname(urlsplit(href).path) if href.startswith("file://") else href


def hide_secrets(text: str) -> str:
    """Take user names, passwords and queries out of all URLs in a text."""
    return _QUERY.sub("", _GDAL_OPTIONS.sub(r"\1", _URL.sub(r"\1\2", text)))


def s3_endpoint() -> SplitResult | None:
    """Say which server is asked for what is on S3, by the variables that Amazon's own tools heed; None: Amazon's."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return urlsplit(endpoint) if endpoint else None


def s3_key(href: str) -> str | None:
    """Give bucket and key, ``bucket/folder/file``, of what GDAL would look for on S3; None: elsewhere."""
    found = re.match(r"(?:s3://|/vsis3/)(.+)", href)
    return None if found is None else found[1]


def open_s3(bucket: str) -> "FileSystem":
    """Open S3 as whoever runs this, by the variables and files of Amazon's own tools.

    Raises
    ------
    OSError
        If the server of the bucket can't be found.
    """
    from pyarrow.fs import FileSystem  # slow to import

    options = {}
    if endpoint := s3_endpoint():
        options = {"scheme": endpoint.scheme, "endpoint_override": endpoint.netloc}
    # By a URL, since that finds the region of the bucket.
    storage, _ = FileSystem.from_uri(f"s3://{quote(bucket)}?{urlencode(options)}")
    return storage


def from_folder(href: str, folder: Path | None) -> str:
    """Name a local file as a document in a folder does, by its relative path; others are left as they are.

    A document that is in no folder of this machine names it by its whole path. Folders that are links count as what
    they lead to, since that is where .. goes up from.
    """
    if not Path(href).exists():
        return href
    if folder is None:
        return Path(href).resolve().as_posix()
    try:
        place = Path(href).absolute()
        return Path(os.path.relpath(place.parent.resolve() / place.name, folder.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return Path(href).resolve().as_posix()


def stem(href: str) -> str:
    """Give the name of a file without its folder, suffix and query."""
    return PurePosixPath(hide_secrets(href)).stem
