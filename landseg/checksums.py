"""Checksums of files, as STAC's file extension asks for them."""

import hashlib
from io import BufferedReader
from pathlib import Path

FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SHA256_MULTIHASH = "1220"
"""What a multihash of this kind begins with."""


def checksum(path: Path, skipped_bytes: int = 0) -> str:
    """Give the SHA-256 of a file, or of what follows its first bytes, as a multihash."""
    with path.open("rb") as file:
        return checksum_of(file, skipped_bytes)


def checksum_of(file: BufferedReader, skipped_bytes: int = 0) -> str:
    """Give the same of an open file."""
    file.seek(skipped_bytes)
    return SHA256_MULTIHASH + hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
