"""stdout and stderr: data goes to the first; notes, warnings and errors go to the second.

Owns: exact bytes for pipes, what is safe on a terminal, JSON, and the shape of errors. Knows no command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

from kvsd.cli.interrupts import tidied_up
from kvsd.cli.streams import STDOUT, carried_stderr, write_stderr, write_stdout

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_RED: Final = "31"
_YELLOW: Final = "33"
_MAX_COLUMNS: Final = 80
_MAX_MESSAGE: Final = 2_000
_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that move the cursor, change colours or turn the text around."""

_HARMLESS: Final = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go; with `as_json` everything is JSON, one document a line."""

    as_json: bool = False

    def line(self, *cells: str) -> None:
        """One line of data, with tabs between its cells, at once.

        Exactly these bytes into a pipe; onto a terminal only what cannot steer it, nor pass for a further line or cell.
        """
        text = "\t".join(map(one_line, cells) if on_terminal() else cells)
        write_stdout(text.encode("utf-8", "surrogateescape") + b"\n")

    def value(self, value: bytes) -> None:
        """A value alone: exactly its bytes into a pipe; onto a terminal only what cannot steer it, and a line end."""
        write_stdout(printable(as_text(value)).encode() + b"\n" if on_terminal() else value)

    def document(self, content: Mapping[str, Json]) -> None:
        """One line of JSON data, at once; pure ASCII, which is safe on every terminal."""
        write_stdout(_dumped(content).encode() + b"\n")

    def figures(self, figures: Mapping[str, object]) -> None:
        """A line for each: its name, and its value as in a configuration."""
        for name, value in figures.items():
            self.line(f"{name:27} {as_configured(value)}")

    def done(self, content: Mapping[str, Json] | None = None) -> None:
        """That it is done, with `content` in the document."""
        if self.as_json:
            self.document({**(content or {}), "status": "OK"})
        else:
            self.line("OK")

    def note(self, text: str) -> None:
        """For a person only: nothing with `as_json`."""
        if not self.as_json:
            _say(one_line(text))

    def reading(self, what: str) -> None:
        """Tell a person at a terminal that it is read now."""
        if sys.stdin is not None and sys.stdin.isatty():
            self.note(f"reading {what} from the terminal; Ctrl-D on a line of its own ends it")

    def summary(self, text: str, figures: Mapping[str, Json]) -> None:
        """What the data amounts to, for stderr."""
        _say(_dumped({"summary": dict(figures)}) if self.as_json else text)

    def warning(self, message: str) -> None:
        self._report("warning", _YELLOW, message, {})

    def error(self, code: str, message: str, facts: Mapping[str, Json] | None = None) -> None:
        """With `facts` in the document."""
        self._report("error", _RED, message, {"code": code, "message": "", **(facts or {})})

    def _report(self, kind: str, colour: str, message: str, content: Mapping[str, Json]) -> None:
        if len(message) > _MAX_MESSAGE:
            # It quotes what was given; the end says what to do.
            message = f"{message[: _MAX_MESSAGE // 2]} [...] {message[-_MAX_MESSAGE // 2 :]}"
        if self.as_json:
            _say(_dumped({kind: {**content, "message": _as_unicode(message)}}))
            return
        text = f"{kind}: {one_line(message)}"
        if sys.stderr is not None and sys.stderr.isatty():
            text = _wrapped(text)
            if in_colour(sys.stderr):
                text = text.replace(f"{kind}:", f"\x1b[1;{colour}m{kind}:\x1b[0m", 1)
        _say(text)


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.__stdout__ is not None and os.isatty(STDOUT)


def in_colour(stream: TextIO) -> bool:
    """Whether colour on `stream` would be seen and is wanted (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as wide as the terminal; what does not fit goes on in the next line. A row of one cell is a heading."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        # Text: brackets in a value are no markup.
        style = "bold" if len(row) == 1 else ""
        table.add_row(*(Text(one_line(cell), style) for cell in row))
    Console(color_system="auto" if in_colour(sys.stdout) else None, highlight=False).print(table)


@contextmanager
def shown_progress() -> Iterator[Console | None]:
    """Where a progress bar may be drawn; None where nobody looks. An interrupt leaves the terminal as it was."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with tidied_up():
        yield Console(file=carried_stderr())


def as_text(data: bytes) -> str:
    """`data` as `Output.line` takes it; what is no UTF-8 becomes itself again there."""
    return data.decode("utf-8", "surrogateescape")


def path_text(path: Path) -> str:
    """`path` as `Output.line` takes it: its own bytes, whatever the locale makes of them."""
    return as_text(os.fsencode(path))


def as_configured(value: object) -> str:
    """`value` as it is written in a configuration."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def printable(text: str) -> str:
    r"""`text` for a terminal: what could steer it, or came from bytes that are no UTF-8, as escapes like \x1b."""
    # Imported here: pipes need none of it.
    from unicodedata import category

    return "".join(
        character if character in _HARMLESS or category(character) not in _STEERING else _escaped(character)
        for character in text
    )


def one_line(text: str) -> str:
    """`printable`, and in one line and one cell of it."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def for_json(data: bytes) -> Json:
    """`data` as text, or as {"base64": …} where it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"base64": b64encode(data).decode("ascii")}


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def _as_unicode(text: str) -> str:
    r"""`text` where bytes that are no UTF-8 stand as \xff: JSON has no other way in the midst of a sentence."""
    return "".join(_escaped(character) if "\ud800" <= character <= "\udfff" else character for character in text)


def _dumped(content: Mapping[str, Json]) -> str:
    import json

    return json.dumps(content)


def _wrapped(text: str) -> str:
    """`text` in lines that fit the terminal, at most 80 columns wide; a `command` stays on one line if it can."""
    import re
    from shutil import get_terminal_size
    from textwrap import fill

    kept = re.sub("`[^`\n]*`", lambda command: command[0].replace(" ", "\0"), text)
    columns = min(get_terminal_size().columns, _MAX_COLUMNS)
    wrapped = fill(kept, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return wrapped.replace("\0", " ")


def _say(text: str) -> None:
    """One line on stderr."""
    encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
    write_stderr(f"{text}\n".encode(encoding, "backslashreplace"))
