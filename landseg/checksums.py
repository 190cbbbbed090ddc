"""Checksums of files, as STAC's file extension asks for them."""

import hashlib
from pathlib import Path

FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
SHA256_MULTIHASH = "1220"
"""What a multihash of this kind begins with."""


def checksum(path: Path, skipped_bytes: int = 0) -> str:
    """Give the SHA-256 of a file, or of what follows its first bytes, as a multihash."""
    return SHA256_MULTIHASH + sha256_of(path, skipped_bytes)


def sha256_of(path: Path, skipped_bytes: int = 0) -> str:
    """Give the SHA-256 of a file, or of what follows its first bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        file.seek(skipped_bytes)
        return hashlib.file_digest(file, "sha256").hexdigest()
