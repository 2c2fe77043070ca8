"""`kvsd scan`, `keys` and `count`: many keys in their order."""

import os
from collections.abc import Iterable
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.output import as_text, for_json

apps: Final = {name: new_command() for name in ("scan", "keys", "count")}

_Prefix = Annotated[str, typer.Argument(metavar="[PREFIX]", help="What the keys begin with.")]
_Start = Annotated[str | None, typer.Option("--start", metavar="KEY", help="From this key on (included).")]
_After = Annotated[str | None, typer.Option("--after", metavar="KEY", help="Behind this key: to go on with a scan.")]
_End = Annotated[str | None, typer.Option("--end", metavar="KEY", help="Up to this key (excluded).")]
_Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=0, help="At most so many.")]


@apps["scan"].command("scan")
@client_command
def scan(
    options: ClientOptions,
    prefix: _Prefix = "",
    start: _Start = None,
    after: _After = None,
    end: _End = None,
    limit: _Limit = None,
) -> None:
    """Print keys and values in the order of the keys, a line each: the key, a tab, the value.

    With --json, a document a line, which holds every byte. Read page by page, so a scan may be as long as the table.

    \b
    Examples:
      kvsd scan user:
      kvsd scan --json --start 2026-01 --end 2026-02
      kvsd scan --after user:0041 --limit 100
    """
    with options.connect() as client:
        found = client.scan(os.fsencode(prefix), start=_start(start, after), end=_bytes(end), limit=limit)
        for key, value in found:
            if options.json:
                options.output.document({"key": for_json(key), "value": for_json(value)})
            else:
                options.output.line(f"{as_text(key)}\t{as_text(value)}")


@apps["keys"].command("keys")
@client_command
def keys(
    options: ClientOptions,
    prefix: _Prefix = "",
    start: _Start = None,
    after: _After = None,
    end: _End = None,
    limit: _Limit = None,
) -> None:
    """Print keys in their order, one a line.

    \b
    Examples:
      kvsd keys user:
      kvsd keys --limit 10
    """
    with options.connect() as client:
        found: Iterable[bytes] = client.keys(
            os.fsencode(prefix), start=_start(start, after), end=_bytes(end), limit=limit
        )
        for key in found:
            if options.json:
                options.output.document({"key": for_json(key)})
            else:
                options.output.line(as_text(key))


@apps["count"].command("count")
@client_command
def count(options: ClientOptions, prefix: _Prefix = "", start: _Start = None, end: _End = None) -> None:
    """Print how many keys there are.

    \b
    Examples:
      kvsd count
      kvsd count user:
    """
    with options.connect() as client:
        number = client.count(os.fsencode(prefix), start=_bytes(start), end=_bytes(end))
    if options.json:
        options.output.document({"count": number})
    else:
        options.output.line(str(number))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _start(start: str | None, after: str | None) -> bytes | None:
    """The first key that may be found."""
    if after is None:
        return _bytes(start)
    return max(os.fsencode(after) + b"\0", _bytes(start) or b"")
