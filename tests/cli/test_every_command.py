"""Every command with every kind of stdin, stdout and stderr, in every locale, with every flag of the interpreter.

The oracle: the bytes are right, or the exit status is not 0.
"""

from __future__ import annotations

import itertools
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import kvsd
from kvsd.client.sync import Client
from kvsd.config import load

from .conftest import Cli, Running, a_server
from .every_command import CASES, Case, matches, registered, words_of

PATIENCE_SECONDS: Final = 60

# Of the tree that is tested, under -I, too.
LAUNCH: Final = f"import sys; sys.path[:0] = {sys.path!r}; from kvsd.cli.main import main; sys.exit(main())"

STDIN: Final = ("closed", "non-blocking", "endless", "empty", "terminal")
STDOUT: Final = ("closed", "full", "gone", "non-blocking", "stderr closed")
LOCALES: Final = ("C.UTF-8", "de_DE.ISO-8859-1", "C", "POSIX")
FLAGS: Final = ((), ("-OO",), ("-I",), ("-W", "error"), ("-O", "unbuffered"))

DOCUMENTED: Final = {0, 1, 2, 3, 4, 5, 6, 7, 8}


@dataclass(frozen=True)
class Row:
    """The circumstances of one call."""

    stdin: str
    stdout: str
    locale: str
    flags: tuple[str, ...]


def rows(number: int) -> list[Row]:
    """The circumstances in which the command of this number is called."""
    return [
        Row(
            STDIN[(turn + number // 5) % len(STDIN)],
            STDOUT[turn],
            LOCALES[(turn + number // 3) % len(LOCALES)],
            FLAGS[(turn + number) % len(FLAGS)],
        )
        for turn in range(len(STDOUT))
    ]


def test_every_command_has_a_case() -> None:
    assert set(CASES) == set(registered())


def test_every_command_meets_every_circumstance_and_each_pair_of_these_meets() -> None:
    of_each = [rows(number) for number in range(len(CASES))]
    kinds = (STDIN, STDOUT, LOCALES, FLAGS)
    for table in of_each:
        for at, kind in enumerate(kinds):
            assert {(row.stdin, row.stdout, row.locale, row.flags)[at] for row in table} == set(kind)
    met = [(row.stdin, row.stdout, row.locale, row.flags) for table in of_each for row in table]
    for one, other in itertools.combinations(range(len(kinds)), 2):
        assert {(row[one], row[other]) for row in met} == set(itertools.product(kinds[one], kinds[other]))


@pytest.fixture(scope="session")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the locale that is not UTF-8, where it can be made; else that one is as good as C."""
    folder = tmp_path_factory.mktemp("locales")
    if localedef := shutil.which("localedef"):
        name = folder / "de_DE.ISO-8859-1"
        subprocess.run([localedef, "-i", "de_DE", "-f", "ISO-8859-1", name], capture_output=True, check=False)
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of its own, since tables and namespaces come and go."""
    with a_server(tmp_path_factory.mktemp("server") / "kvsd") as running:
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    settings = load(running.folder / "config.yaml", environ={}).client
    assert settings.username is not None
    assert settings.password is not None
    with kvsd.connect(
        port=running.port, username=settings.username, password=settings.password, ca=settings.ca
    ) as connected:
        yield connected


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: bytes | None
    """None where nobody could read it."""
    err: bytes
    given: bytes
    """What it can have read to the end."""


def call(words: list[str], row: Row, given: bytes | None, locales: Path) -> Ended:
    """A process with the words as arguments, in the circumstances of `row`."""
    closed = [
        descriptor
        for descriptor, is_closed in enumerate(
            (row.stdin == "closed", row.stdout == "closed", row.stdout == "stderr closed")
        )
        if is_closed
    ]
    flags = [flag for flag in row.flags if flag != "unbuffered"]
    with (
        tempfile.TemporaryFile() as err,
        _stdin(row.stdin, given, asks=words == ["passwd"]) as stdin,
        _stdout(row.stdout) as stdout,
    ):
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", LAUNCH, *map(str.encode, words)],
            stdin=stdin.theirs,
            stdout=stdout.theirs,
            stderr=err,
            env=_environment(row, locales),
            preexec_fn=lambda: [os.close(descriptor) for descriptor in closed],  # noqa: PLW1509 - a fresh process
            start_new_session=True,
        )
        try:
            stdin.feed()
            out = stdout.read()
            status = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()
        err.seek(0)
        return Ended(status, out, err.read(), stdin.held)


def _environment(row: Row, locales: Path) -> dict[str, str]:
    environment = {**os.environ, "LC_ALL": row.locale, "LOCPATH": str(locales)}
    if row.locale in {"C", "POSIX"}:
        # Or Python would take these for UTF-8.
        environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if row.locale == "C.UTF-8":
        del environment["LOCPATH"]
    if "unbuffered" in row.flags:
        environment["PYTHONUNBUFFERED"] = "1"
    return environment


class _stdin:  # noqa: N801 - a context manager
    """One kind of stdin."""

    def __init__(self, kind: str, given: bytes | None, *, asks: bool) -> None:
        self._kind = kind
        self._asks = asks
        self._rest = given or b""
        self._ours = -1
        self.held = b""

    def __enter__(self) -> _stdin:
        match self._kind:
            case "non-blocking":
                self.theirs, self._ours = os.pipe()
                os.set_blocking(self.theirs, False)
                os.set_blocking(self._ours, False)
                self.held = self._rest
                self._write()  # fills the pipe: the rest comes after a pause
            case "terminal":
                # Of a question for a password it is the end: that forgets what was typed before it.
                self._ours, self.theirs = pty.openpty()
                self.held = b"" if self._asks else self._rest[: self._rest.find(b"\n") + 1]
                if self.held:
                    os.write(self._ours, self.held + b"\x04")
                    self._rest = b""
            case _:
                self.theirs = os.open("/dev/zero" if self._kind == "endless" else os.devnull, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self.theirs, self._ours):
            if descriptor >= 0:
                os.close(descriptor)

    def feed(self) -> None:
        """Give what is to be given, as it is taken."""
        os.close(self.theirs)
        self.theirs = -1
        if self._kind == "non-blocking":
            try:
                while self._rest:
                    _, ready, _ = select.select([], [self._ours], [], PATIENCE_SECONDS)
                    assert ready
                    self._write()
            except BrokenPipeError:
                pass
        if self._ours >= 0 and not (self._kind == "terminal" and self.held):
            os.close(self._ours)
            self._ours = -1

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._ours, self._rest) :]
        except BlockingIOError:
            pass


class _stdout:  # noqa: N801 - a context manager
    """One kind of stdout."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._ours = -1
        self._before = 0

    def __enter__(self) -> _stdout:
        if self._kind in {"closed", "full"}:
            self.theirs = os.open("/dev/full" if self._kind == "full" else os.devnull, os.O_WRONLY)
            return self
        self._ours, self.theirs = os.pipe()
        if self._kind == "gone":
            os.close(self._ours)
            self._ours = -1
        elif self._kind == "non-blocking":
            os.set_blocking(self.theirs, False)
            with suppress(BlockingIOError):  # full, so that the command has to wait
                while True:
                    self._before += os.write(self.theirs, bytes(4096))
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self.theirs, self._ours):
            if descriptor >= 0:
                os.close(descriptor)

    def read(self) -> bytes | None:
        """All that the process prints."""
        os.close(self.theirs)
        self.theirs = -1
        if self._ours < 0:
            return None
        data = bytearray()
        while True:
            ready, _, _ = select.select([self._ours], [], [], PATIENCE_SECONDS)
            assert ready, "the command neither ended nor said anything"
            piece = os.read(self._ours, 1 << 20)
            if not piece:
                return bytes(data[self._before :])
            data += piece


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110 - a device
@pytest.mark.parametrize("command", CASES)
def test_the_bytes_are_right_or_the_exit_status_is_not_0(
    cli: Cli, server: Running, client: Client, locales: Path, tmp_path: Path, command: str
) -> None:
    case = CASES[command]
    number = list(CASES).index(command)
    for turn, row in enumerate(rows(number)):
        key, name = f"nyckel-å-{number}-{turn}", f"of-its-own-{number}-{turn}"
        folder = tmp_path / f"mapp-å-{turn}"
        folder.mkdir()
        for earlier in case.setup:
            assert cli(*words_of(earlier, key=key, name=name, folder=folder)).status == 0
        if case.before is not None:
            client.set(key, case.before)
        given = None if case.given is None else case.given(key)
        ended = call(words_of(case.arguments, key=key, name=name, folder=folder), row, given, locales)
        told = (command, row, ended)
        assert ended.status in DOCUMENTED, told
        for word in (b"Traceback", b"unexpected", b"Exception ignored", b"Warning"):
            assert word not in ended.err, told
        if ended.status == 0:
            assert row.stdout not in {"closed", "full"}, told
            if ended.out is not None:
                assert matches(case, ended.out, key=key, name=name, folder=folder), told
        if case.given is not None and row.stdin in {"closed", "endless"}:
            assert ended.status != 0, told
        _check_the_value(client, case, ended, key, told)


def _check_the_value(client: Client, case: Case, ended: Ended, key: str, told: object) -> None:
    """Done as a whole, or not at all; and where the status says that it is not, the message says that it is."""
    stored = client.get(key)
    expected = case.before if case.after is None else case.after(ended.given)
    if ended.status == 0 or b"it is done, but the answer is lost" in ended.err:
        assert stored == expected, told
    else:
        assert stored == case.before or not ended.err, told
