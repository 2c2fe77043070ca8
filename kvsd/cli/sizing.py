"""`kvsd sizing`: what a table is going to take of memory and disk."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from kvsd.cli.app import ConfigOption, JsonOption, new_command
from kvsd.cli.failures import UsageError
from kvsd.cli.output import Json, Output
from kvsd.cli.settings import load_settings
from kvsd.config.values import GIB, KIB, MIB, size
from kvsd.types import LARGEST_VALUE_BYTES

if TYPE_CHECKING:
    from kvsd.table.sizing import Memory

T = TypeVar("T")

app = new_command()

_COUNT: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kmg]?)")
_THOUSANDS: Final = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_SHARE: Final = re.compile(r"([0-9]{1,2})%")
_MAX_GARBAGE: Final = 0.95
_SERVER_BYTES: Final = 48 * MIB
"""Of a server without keys or connections."""


@app.command("sizing")
def sizing(
    keys: Annotated[str, typer.Option("--keys", metavar="N", help="How many: 250000, 250k, 10M, 1.5G.")],
    key_bytes: Annotated[str, typer.Option("--key-bytes", metavar="SIZE", help="Length of a key.")] = "20",
    value_bytes: Annotated[str, typer.Option("--value-bytes", metavar="SIZE", help="Such as 100 or 4KiB.")] = "100",
    garbage: Annotated[
        str | None,
        typer.Option("--garbage", metavar="SHARE", help="Of the log, at most; by default what compaction leaves."),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Tell what a server's table will take of memory and disk.

    With one table, and the settings that hold here. Disk includes the room that starts and compactions need.

    \b
    Examples:
      kvsd sizing --keys 10M --key-bytes 20 --value-bytes 100
      kvsd sizing --keys 250k --value-bytes 4KiB --garbage 30%
    """
    # Imported here: the help needs none of it.
    from kvsd.table.sizing import disk, memory

    output = Output(as_json=json)
    count = _parsed("--keys", _count, keys)
    key_size = _parsed("--key-bytes", size(1, 64 * KIB - 1), key_bytes)
    value_size = _parsed("--value-bytes", size(0, LARGEST_VALUE_BYTES), value_bytes)
    settings = load_settings(config, output)
    storage = settings.storage
    ratio = min(storage.compaction_garbage_ratio, _MAX_GARBAGE)
    share = ratio if garbage is None else _parsed("--garbage", _share, garbage)
    ram = memory(count, key_size)
    files = disk(count, key_size, value_size, segment_bytes=storage.segment_bytes, garbage=share)
    parts = {
        "memory": [
            ("keys", ram.peak, _a_key(ram, count)),
            ("order", ram.order, "once somebody scans or counts"),
            ("cache", storage.cache_bytes, "kvsd.cache_bytes"),
            ("requests", settings.server.memory_bytes, "server.memory_bytes, at most; connections come on top"),
            ("server", _SERVER_BYTES, ""),
        ],
        "disk": [
            ("entries", files.entries, f"{files.entries / count:.0f} bytes each"),
            ("hints", files.hints, "for a fast start"),
            ("garbage", files.garbage, f"{share:.0%} of the log"),
            ("room", files.room, "for the file being written, and a compaction or start"),
        ],
    }
    if json:
        document: dict[str, Json] = {}
        for part, rows in parts.items():
            document[part] = {**{what: figure for what, figure, _ in rows}, "total": _total(rows)}
        output.document(document)
        return
    for part, rows in parts.items():
        output.line(f"{part:10} {_human(_total(rows)):>9}")
        for what, figure, remark in rows:
            output.line(f"  {what:8} {_human(figure):>9}  {remark}".rstrip())
    if not storage.compaction:
        output.note("kvsd.compaction is off: garbage grows with every key that is set anew or deleted")


def _a_key(ram: "Memory", count: int) -> str:
    at_rest, peak = round(ram.keys / count), round(ram.peak / count)
    return f"{at_rest} bytes each" + (f", {peak} for a moment, when the index doubles" if peak > at_rest else "")


def _total(rows: list[tuple[str, int, str]]) -> int:
    return sum(figure for _, figure, _ in rows)


def _human(size_bytes: int) -> str:
    """With three digits or so: 512 B, 1.5 GiB."""
    for unit, name in ((1024 * GIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.{0 if size_bytes >= 100 * unit else 1}f} {name}"
    return f"{size_bytes} B"


def _parsed(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None


def _count(text: str) -> int:
    found = _COUNT.fullmatch(text.strip().replace("_", "").lower())
    count = round(float(found[1]) * _THOUSANDS[found[2]]) if found else 0
    if not 1 <= count <= 10**12:
        raise ValueError("must be a number of keys from 1 to 1000G, such as 250000, 250k or 10M")
    return count


def _share(text: str) -> float:
    found = _SHARE.fullmatch(text.strip())
    share = int(found[1]) / 100 if found else 1
    if share > _MAX_GARBAGE:
        raise ValueError("must be from 0% to 95%, such as 50%")
    return share
