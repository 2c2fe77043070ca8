"""stdin, stdout and stderr as they are found: closed, non-blocking, short of room, or gone.

Owns: reading to the real end, and writing all of it or failing. Python's own streams do neither where a descriptor is
non-blocking or PYTHONUNBUFFERED is set. Knows no command, and not what the bytes mean.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from select import select
from typing import TYPE_CHECKING, Final

from kvsd.cli.failures import CommandFailed, OutputFailed, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

_PIECE_BYTES: Final = 1024 * 1024


def read_stdin(limit: int, otherwise: str = "") -> bytearray:
    """All that stdin holds; UsageError where that is more than `limit` bytes, or it is closed (`otherwise`: hint)."""
    data = bytearray()
    for piece in stdin_pieces(otherwise):
        data += piece
        if len(data) > limit:
            raise UsageError(f"stdin is longer than {limit} bytes, the most that can be taken")
    return data


def read_file(path: Path, limit: int) -> bytearray:
    """All that the file holds, at most `limit` bytes and one more. Raises OSError."""
    data = bytearray()
    with path.open("rb", buffering=0) as file:
        while len(data) <= limit and (piece := _read(file.fileno(), min(_PIECE_BYTES, limit + 1 - len(data)))):
            data += piece
    return data


def stdin_pieces(otherwise: str = "") -> Iterator[bytes]:
    """The bytes on stdin, up to its real end. Raises as `read_stdin`, and CommandFailed where it cannot be read."""
    if sys.stdin is None:
        raise UsageError(f"stdin is closed{otherwise}")
    try:
        while piece := _read(STDIN, _PIECE_BYTES):
            yield piece
    except OSError as error:
        raise CommandFailed(f"cannot read stdin: {error.strerror}") from None


def stdin_lines(limit: int) -> Iterator[bytes]:
    """The lines on stdin without their ends; UsageError where these are more than `limit` bytes in all."""
    taken = 0
    line = bytearray()
    for piece in stdin_pieces():
        taken += len(piece)
        if taken > limit:
            raise UsageError(f"stdin is longer than {limit} bytes, the most that can be taken")
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line += end
            yield bytes(line)
            line.clear()
        line += rest
    if line:
        yield bytes(line)


def write_stdout(data: ReadableBuffer) -> None:
    """All of `data`, at once. BrokenPipeError where the reader is gone, OutputFailed where it cannot be written."""
    if sys.__stdout__ is None:
        raise OutputFailed("cannot write the output: stdout is closed")
    try:
        _write(STDOUT, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"cannot write the output: {error.strerror}") from None


def write_stderr(data: ReadableBuffer) -> None:
    """All of `data`, at once; where that is not possible there is nobody to tell."""
    if sys.stderr is not None:
        with suppress(OSError):
            _write(STDERR, data)


@contextmanager
def carried_stdout() -> Iterator[None]:
    """Has what others print (typer its help, rich its tables) go the way of `write_stdout`, always as UTF-8."""
    with redirect_stdout(_text(_Carried(STDOUT, write_stdout), "utf-8")):
        yield


def carried_stderr() -> io.TextIOWrapper:
    """A text file whose writes are those of `write_stderr`."""
    return _text(_Carried(STDERR, write_stderr), "utf-8" if sys.stderr is None else sys.stderr.encoding)


class _Carried(io.RawIOBase):
    """A standard stream that keeps its word: `carry` writes all of what it is given."""

    def __init__(self, descriptor: int, carry: Callable[[ReadableBuffer], None]) -> None:
        self._descriptor = descriptor
        self._carry = carry

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self._carry(data)
        return memoryview(data).nbytes

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def _text(raw: io.RawIOBase, encoding: str) -> io.TextIOWrapper:
    # typeshed wants a BufferedIOBase; of a RawIOBase the wrapper ignores short writes, and ours makes none.
    return io.TextIOWrapper(raw, encoding, "backslashreplace", "\n", write_through=True)  # type: ignore[arg-type]


def _read(descriptor: int, size: int) -> bytes:
    """The bytes that are there, once there are some; b"" at the end only."""
    while True:
        try:
            return os.read(descriptor, size)
        except BlockingIOError:
            select([descriptor], (), ())


def _write(descriptor: int, data: ReadableBuffer) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select((), [descriptor], ())
