"""stdout and stderr: data goes to the first; notes, warnings and errors go to the second.

Owns: exact bytes for pipes, what is safe on a terminal, JSON, and the shape of errors. Knows no command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TextIO, TypeAlias

from kvsd.cli.failures import CommandFailed

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_RED: Final = "31"
_YELLOW: Final = "33"
_MAX_COLUMNS: Final = 80
_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that move the cursor, change colours or turn the text around."""

_HARMLESS: Final = frozenset("\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")


@dataclass(frozen=True, slots=True)
class Output:
    """Where a command's words go; with `as_json` everything is JSON, one document a line."""

    as_json: bool = False

    def line(self, text: str) -> None:
        """One line of data, at once: exactly these bytes into a pipe, only what is harmless onto a terminal."""
        shown = printable(text) if on_terminal() else text
        write(shown.encode("utf-8", "surrogateescape") + b"\n")

    def document(self, content: Mapping[str, Json]) -> None:
        """One line of JSON data, at once; pure ASCII, which is safe on every terminal."""
        write(_dumped(content).encode() + b"\n")

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
            _say(text)

    def summary(self, text: str, figures: Mapping[str, Json]) -> None:
        """What the data amounts to, for stderr."""
        _say(_dumped({"summary": dict(figures)}) if self.as_json else text)

    def warning(self, message: str) -> None:
        self._report("warning", _YELLOW, message, {"message": message})

    def error(self, code: str, message: str) -> None:
        self._report("error", _RED, message, {"code": code, "message": message})

    def _report(self, kind: str, colour: str, message: str, content: Mapping[str, Json]) -> None:
        if self.as_json:
            _say(_dumped({kind: dict(content)}))
            return
        # One line even where a key in it has several.
        text = f"{kind}: {printable(message)}".replace("\n", "\\n")
        if sys.stderr is not None and sys.stderr.isatty():
            text = _wrapped(text)
            if in_colour(sys.stderr):
                text = text.replace(f"{kind}:", f"\x1b[1;{colour}m{kind}:\x1b[0m", 1)
        _say(text)


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def in_colour(stream: TextIO) -> bool:
    """Whether colour on `stream` would be seen and is wanted (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write(data: bytes) -> None:
    """Exactly `data` to stdout, at once.

    Raises BrokenPipeError where the reader is gone, CommandFailed where the output cannot be written.
    """
    if sys.stdout is None:
        raise CommandFailed("cannot write the output: stdout is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise CommandFailed(f"cannot write the output: {error.strerror}") from None


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
        table.add_row(*(Text(printable(cell), style) for cell in row))
    Console(color_system="auto" if in_colour(sys.stdout) else None, highlight=False).print(table)


def discard_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter complains about it when it exits."""
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def as_text(data: bytes) -> str:
    """`data` as `Output.line` takes it; what is no UTF-8 becomes itself again there."""
    return data.decode("utf-8", "surrogateescape")


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
    """One line on stderr; where that is closed there is nobody to tell."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the place that prints
