"""Object storage as the place of outputs: they are made in a folder of this machine, and uploaded when all are there.

Whom to ask and who asks comes from where all tools for S3 look: variables such as ``AWS_ACCESS_KEY_ID`` and
``AWS_ENDPOINT_URL``, and the files in ``~/.aws``. None of it is written anywhere.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from landseg.errors import DiskError, UsageError
from landseg.hrefs import is_remote, open_s3
from landseg.machine import cache_folder

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_CAUSE = re.compile(r"AWS Error (.*)", re.DOTALL)
_READ_BYTES = 8 * 2**20
"""Asked for at once: each request takes its time."""


@dataclass(frozen=True)
class StorageFolder:
    """A place in a bucket that files are uploaded to.

    Parameters
    ----------
    bucket
        Name of the bucket.
    path
        Of the folder within it; empty for the bucket itself.
    """

    bucket: str
    path: str

    @classmethod
    def around(cls, url: str) -> tuple["StorageFolder", str]:
        """Split a file's URL into its folder and its name.

        Raises
        ------
        UsageError
            If it is no URL of a file on S3.
        """
        parts = urlsplit(url)
        if parts.scheme != "s3":
            raise UsageError(f"nothing can be written to {url}", "give a local path, or s3://bucket/name.gpkg")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"{url} is not of the form s3://bucket/name.gpkg", "credentials are read from AWS_… variables"
            )
        *folders, name = parts.path.removeprefix("/").split("/")
        if not parts.netloc or not name or {"", ".", ".."} & {*folders, name}:
            raise UsageError(f"{url} is not of the form s3://bucket/name.gpkg")
        return cls(parts.netloc, "/".join(folders)), name

    @property
    def url(self) -> str:
        """The folder's URL, without a slash at its end."""
        return f"s3://{self._key('')}".rstrip("/")

    def below(self, folder: Path) -> Path:
        """Give the place in a local folder that stands for this one."""
        return folder / self.bucket / self.path

    def within(self, name: str) -> "StorageFolder":
        """Give a folder in this one."""
        return replace(self, path=str(PurePosixPath(self.path, name)))

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Find those of some names that are taken, and give the bytes of each.

        Raises
        ------
        UsageError
            If there is no such bucket.
        DiskError
            If the server does not answer, or not to us.
        """
        from pyarrow.fs import FileType

        with self._asking():
            bucket, *files = self._open().get_file_info([self.bucket, *map(self._key, names)])
        if bucket.type == FileType.NotFound:
            raise UsageError(f"there is no bucket {self.bucket}", "make it first, or choose another --out")
        found = zip(names, files, strict=True)
        return {name: file.size or 0 for name, file in found if file.type != FileType.NotFound}

    def read_text(self, name: str) -> str | None:
        """Read a file of the folder; None if there is none.

        Raises
        ------
        DiskError
            If it can't be read.
        """
        with self._asking():
            try:
                file = self._open().open_input_file(self._key(name))
            except FileNotFoundError:
                return None
            with file:
                return bytes(file.read()).decode("utf-8", "replace")

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        """Read a file of the folder in parts.

        Raises
        ------
        DiskError
            If it can't be read, then or later.
        """
        with self._asking(), BufferedReader(self._open().open_input_file(self._key(name)), _READ_BYTES) as file:
            yield file

    def upload(self, files: Collection[Path]) -> None:
        """Copy files into the folder under their own names, in the order given; each appears whole or not at all.

        Raises
        ------
        DiskError
            If the server does not take one.
        """
        from pyarrow.fs import LocalFileSystem, copy_files

        storage = self._open()
        for file in files:
            with self._asking():
                copy_files(
                    str(file),
                    self._key(file.name),
                    source_filesystem=LocalFileSystem(),
                    destination_filesystem=storage,
                )

    def remove(self) -> None:
        """Remove the folder with what is in it, if that is allowed: who may upload may not always do so."""
        with suppress(OSError, DiskError):
            self._open().delete_dir(self._key(""))

    def _key(self, name: str) -> str:
        return str(PurePosixPath(self.bucket, self.path, name))

    def _open(self) -> "FileSystem":
        with self._asking():
            return open_s3(self.bucket)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn a server's refusals, and its silence, into `DiskError`."""
        try:
            yield
        except OSError as error:
            found = _CAUSE.search(str(error))
            raise DiskError(
                f"no access to {self.url}: {found[1] if found else error}",
                "check the credentials and the region, or AWS_ENDPOINT_URL; what is finished is kept",
            ) from error


def located(out: Path | str, work_folder: Path | None) -> tuple[Path, StorageFolder | None]:
    """Say where a file is made, and where it is uploaded to: nowhere, or to object storage if it has a URL.

    Raises
    ------
    UsageError
        If it is no URL of a file on S3, or a work folder is named for what needs none.
    """
    if is_remote(str(out)):
        storage, name = StorageFolder.around(str(out))
        return storage.below(work_folder or cache_folder() / "s3") / name, storage
    if work_folder is not None:
        raise UsageError(
            f"a work folder is of no use for {out}", "only outputs on object storage (s3://) are not made beside it"
        )
    return Path(out), None
