"""Checksums of files, as STAC's file extension asks for them."""

import hashlib
from pathlib import Path

FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SHA256_MULTIHASH = "1220"
"""What a multihash of this kind begins with."""


def checksum(path: Path) -> str:
    """Give a file's SHA-256 as a multihash."""
    return SHA256_MULTIHASH + sha256_of(path)


def sha256_of(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
