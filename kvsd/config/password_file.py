"""Files that hold one secret, as containers and service managers hand them over.

Owns: how one is read. Must not know what the secret is for, nor who named the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 64 * 1024


def read(path: Path) -> str:
    """The first line, without its end. Raises ValueError with a text that follows the file's name."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        return data.partition(b"\n")[0].removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise ValueError("does not begin with UTF-8 text") from None
