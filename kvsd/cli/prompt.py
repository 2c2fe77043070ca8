"""Secrets from a terminal, from stdin or from a file, never from the arguments.

Owns: how one is asked for or read. Must not know what it is for.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Final

from kvsd.cli.failures import UsageError
from kvsd.cli.interrupts import tidied_up
from kvsd.cli.streams import read_file as read_bytes
from kvsd.cli.streams import read_stdin, stdin_pieces, write_stderr

_MAX_SECRET_BYTES: Final = 64 * 1024


def ask(question: str) -> str:
    """What is typed in answer to `question`, which is not echoed; UsageError where there is no terminal."""
    # Imported here: every client command loads this file, and few ask.
    from getpass import GetPassWarning, getpass

    with warnings.catch_warnings(), tidied_up():
        # getpass would read stdin instead, and echo.
        warnings.simplefilter("error", GetPassWarning)
        try:
            return getpass(question)
        except GetPassWarning:
            raise UsageError("there is no terminal to ask on; pass the password in a file or a variable") from None
        except EOFError:
            raise UsageError("no password was typed") from None
        except UnicodeDecodeError:
            raise UsageError("what was typed is no text in this locale; check LC_ALL and LANG") from None


def read_line() -> str:
    """The one line that stdin holds, without its end; UsageError where it holds more, or what is no text."""
    line, _, rest = read_stdin(_MAX_SECRET_BYTES, "; a password is one line on it").partition(b"\n")
    if rest:
        raise UsageError("stdin holds more than one line; a password is one line")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError("stdin holds what is not UTF-8 text, which no client could send as a password") from None


def read_file(path: Path) -> str:
    """The first line of a password file, without its end; UsageError where it cannot be read as one."""
    try:
        data = read_bytes(path, _MAX_SECRET_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the password file {path}: {error.strerror}; check --password-file") from None
    line, _, _ = data.partition(b"\n")
    if len(line) > _MAX_SECRET_BYTES:
        raise UsageError(f"the password file {path} begins with no line of text; check --password-file")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError(f"the password file {path} does not begin with UTF-8 text; check --password-file") from None


def confirm(question: str) -> bool:
    """Whether the person at the terminal says yes; without a terminal nobody does."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    write_stderr(f"{question} [y/N] ".encode())
    # A terminal hands out a line at a time.
    return next(stdin_pieces(), b"").strip().lower() in {b"y", b"yes"}
