"""Secrets from a terminal, from stdin or from a file, never from the arguments.

Owns: how one is asked for or read. Must not know what it is for.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Final

from kvsd.cli.failures import UsageError
from kvsd.config import password_file

_MAX_SECRET_BYTES: Final = 64 * 1024


def ask(question: str) -> str:
    """What is typed in answer to `question`, which is not echoed; UsageError where there is no terminal."""
    # Imported here: every client command loads this file, and few ask.
    from getpass import GetPassWarning, getpass

    with warnings.catch_warnings():
        # getpass would read stdin instead, and echo.
        warnings.simplefilter("error", GetPassWarning)
        try:
            return getpass(question)
        except GetPassWarning:
            raise UsageError("there is no terminal to ask on; pass the password in a file or a variable") from None
        except EOFError:
            raise UsageError("no password was typed") from None


def read_line() -> str:
    """The one line that stdin holds, without its end; UsageError where it holds more, or what is no text."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise UsageError(f"stdin holds more than {_MAX_SECRET_BYTES} bytes; a password is one line")
    line, _, rest = data.partition(b"\n")
    if rest:
        raise UsageError("stdin holds more than one line; a password is one line")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError("stdin holds what is not UTF-8 text, which no client could send as a password") from None


def read_file(path: Path) -> str:
    """The first line of a password file, without its end; UsageError where it cannot be read as one."""
    try:
        return password_file.read(path)
    except ValueError as error:
        raise UsageError(f"the password file {path} {error}; check --password-file") from None


def confirm(question: str) -> bool:
    """Whether the person at the terminal says yes; without a terminal nobody does."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201 - a prompt is what this module is for
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
