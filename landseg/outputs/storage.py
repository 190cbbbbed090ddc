"""Object storage as the place of outputs: they are made in a folder of this machine, and uploaded when all are there.

Whom to ask and who asks comes from where all tools for S3 look: variables such as ``AWS_ACCESS_KEY_ID`` and
``AWS_ENDPOINT_URL``, and the files in ``~/.aws``. None of it is written anywhere.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from landseg.errors import DiskError, UsageError
from landseg.hrefs import open_s3

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_CAUSE = re.compile(r"AWS Error (.*)", re.DOTALL)


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

    def existing(self, names: Sequence[str]) -> set[str]:
        """Find those of some names that are taken.

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
        return {name for name, file in zip(names, files, strict=True) if file.type != FileType.NotFound}

    def read_text(self, name: str) -> str:
        """Read a file of the folder.

        Raises
        ------
        DiskError
            If it can't be read.
        """
        with self._asking(), self._open().open_input_file(self._key(name)) as file:
            return bytes(file.read()).decode("utf-8", "replace")

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
