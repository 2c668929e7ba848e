"""What identifies a local checkpoint, without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

#: Bytes read at a time.
_CHUNK_BYTES = 1 << 22


def files_digest(folder: Path) -> str:
    """Return the sha256 of a checkpoint's config and weight files."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
