"""`kvsd scan`, `keys` and `count`: many keys in their order."""

import os
import re
from collections.abc import Iterable
from typing import Annotated, Final

import typer

from kvsd.cli.app import new_command
from kvsd.cli.client import ClientOptions, client_command
from kvsd.cli.failures import UsageError
from kvsd.cli.output import as_text, for_json
from kvsd.cli.streams import write_stdout

apps: Final = {name: new_command() for name in ("scan", "keys", "count")}

_Prefix = Annotated[str, typer.Argument(metavar="[PREFIX]", help="What the keys begin with.")]
_Start = Annotated[str | None, typer.Option("--start", metavar="KEY", help="From this key on (included).")]
_After = Annotated[str | None, typer.Option("--after", metavar="KEY", help="Behind this key: to go on with a scan.")]
_End = Annotated[str | None, typer.Option("--end", metavar="KEY", help="Up to this key (excluded).")]
_Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=0, max=2**63 - 1, help="At most so many.")]
_WILDCARDS: Final = re.compile(r"[*?]|\[.*\]")


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
    """Print keys and values, in the order of the keys.

    A line each: the key, a tab, the value. With --json, a document a line, which holds every byte. Read page by page,
    so a scan may be as long as the table. PREFIX is taken as it stands: there are no wildcards.

    \b
    Examples:
      kvsd scan user:
      kvsd scan --json --start 2026-01 --end 2026-02
      kvsd scan --after user:0041 --limit 100
    """
    with options.connect() as client:
        found = client.scan(os.fsencode(prefix), start=_start(start, after), end=_bytes(end), limit=limit)
        is_empty = True
        for key, value in found:
            is_empty = False
            if options.json:
                options.output.document({"key": for_json(key), "value": for_json(value)})
            else:
                options.output.line(as_text(key), as_text(value))
    _explain(options, prefix, is_empty=is_empty)


@apps["keys"].command("keys")
@client_command
def keys(
    options: ClientOptions,
    prefix: _Prefix = "",
    start: _Start = None,
    after: _After = None,
    end: _End = None,
    limit: _Limit = None,
    null: Annotated[bool, typer.Option("-0", "--null", help="End each key with a NUL instead of a line end.")] = False,
) -> None:
    """Print keys in their order, one a line.

    PREFIX is taken as it stands: there are no wildcards.

    \b
    Examples:
      kvsd keys user:
      kvsd keys --limit 10
      kvsd keys -0 session: | xargs -0 kvsd delete
    """
    if null and options.json:
        raise UsageError("--null and --json exclude each other; give one of them")
    with options.connect() as client:
        found: Iterable[bytes] = client.keys(
            os.fsencode(prefix), start=_start(start, after), end=_bytes(end), limit=limit
        )
        is_empty = True
        for key in found:
            is_empty = False
            if options.json:
                options.output.document({"key": for_json(key)})
            elif null:
                write_stdout(key + b"\0")
            else:
                options.output.line(as_text(key))
    _explain(options, prefix, is_empty=is_empty)


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
    _explain(options, prefix, is_empty=number == 0)


def _explain(options: ClientOptions, prefix: str, *, is_empty: bool) -> None:
    """Tell whoever wrote a pattern why nothing was found."""
    if is_empty and (wildcard := _WILDCARDS.search(prefix)):
        options.output.note(
            f"no key begins with {as_text(os.fsencode(prefix))}: a prefix is taken as it stands, without wildcards; "
            f"{as_text(os.fsencode(prefix[: wildcard.start()])) or 'no prefix'} finds all that begin so"
        )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _start(start: str | None, after: str | None) -> bytes | None:
    """The first key that may be found."""
    if after is None:
        return _bytes(start)
    return max(os.fsencode(after) + b"\0", _bytes(start) or b"")
