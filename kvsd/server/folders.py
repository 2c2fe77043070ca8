"""Folders that others cannot write to, whatever the umask says.

Owns: the modes of folders that are made. Must not know what they are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PUBLIC: Final = 0o755


def make_folder(folder: Path, mode: int = _PUBLIC) -> None:
    """Make `folder`, and its parents where they are missing; a stricter umask is heeded. Raises OSError.

    Path.mkdir gives parents all rights that the umask leaves.
    """
    for parent in reversed(folder.parents):
        if not parent.exists():
            parent.mkdir(_PUBLIC, exist_ok=True)
    folder.mkdir(mode, exist_ok=True)
