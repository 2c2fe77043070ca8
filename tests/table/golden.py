"""The log in `tests/data/golden-v1`: written once by the first release, and never again.

It pins the format byte by byte: every later release must read it, and as long as it writes this version it must write
the same bytes. Only a new format version makes a new folder beside it, by

    python -m tests.table.golden FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

from tests.table.driver import Table
from tests.table.medium import FaultyMedium

FOLDER = Path(__file__).parent.parent / "data" / "golden-v1"
HINTS = Path(__file__).parent.parent / "data" / "golden-hints-v1"
"""The hints of that log. A new version of their format replaces them: hints of old releases need not be read."""
TABLE_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
ITEMS = {b"empty": b"", b"": b"the empty key", b"counter": b"3", "schl\u00fcssel".encode(): bytes(range(256))}


def write(root: Path) -> Path:
    """The golden log with its fixed ids, marks and clock; returns its folder."""
    with (
        mock.patch("secrets.token_bytes", return_value=TABLE_ID),
        mock.patch("secrets.randbelow", side_effect=(0xA1B2C3D3, 0x0BADCAFD)),
    ):
        table = Table(FaultyMedium(root), root, segment_bytes=700)
        for number in range(3):
            table.put(b"counter", b"%d" % (number + 1))
        table.put(b"gone", b"soon deleted")
        table.put(b"empty", b"")
        table.set(b"", b"the empty key")
        table.remove(b"gone")
        table.put("schl\u00fcssel".encode(), bytes(range(256)))
        table.stop()
    return table.directory


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for path in write(target / "work").glob("*.seg"):
        path.rename(target / path.name)
