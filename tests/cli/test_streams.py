"""Reading to the real end and writing to it, whatever the descriptors are like."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.cli import streams
from kvsd.cli.failures import OutputFailed, UsageError

from .conftest import Cli, Running, stdin_of
from .every_command import CASES, words_of
from .test_every_command import LAUNCH, Row, call

READERS = [command for command, case in CASES.items() if case.given]


@pytest.mark.parametrize("command", READERS)
def test_a_stdin_that_does_not_block_is_read_to_its_end(
    cli: Cli, server: Running, tmp_path: Path, command: str
) -> None:
    case = CASES[command]
    assert case.given is not None
    assert cli("set", "late", "-", given=case.before or b"").status == 0
    given = case.given("late")
    words = words_of(case.arguments, key="late", name="late", folder=tmp_path)
    ended = call(words, Row("non-blocking", "plain", "C.UTF-8", ()), given, tmp_path)
    assert (ended.status, ended.err) == (0, b"")
    if case.after is not None:
        assert cli("get", "late").out == case.after(given)


@pytest.mark.parametrize("command", READERS)
def test_a_closed_stdin_is_a_plain_error(server: Running, tmp_path: Path, command: str) -> None:
    words = words_of(CASES[command].arguments, key="k", name="n", folder=tmp_path)
    ended = call(words, Row("closed", "plain", "C.UTF-8", ()), None, tmp_path)
    assert (ended.status, ended.out) == (2, b"")
    assert ended.err.startswith(b"error: stdin is closed")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [closed for size in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), size)])
def test_with_any_of_the_streams_closed_a_value_goes_where_it_belongs(
    cli: Cli, server: Running, closed: tuple[int, ...]
) -> None:
    cli("delete", "closed")
    for arguments in (["set", "closed", "v"], ["get", "closed"], ["set", "closed", "-"]):
        ended = subprocess.run(
            [sys.executable, "-c", LAUNCH, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            preexec_fn=lambda: [os.close(descriptor) for descriptor in closed],
            timeout=20,
            check=False,
        )
        is_lost = 1 in closed
        match arguments:
            case ["get", _]:
                assert (ended.returncode, ended.stdout) == ((1, b"") if is_lost else (0, b"v"))
            case [_, _, "-"] if 0 in closed:
                assert ended.returncode == 2
            case _:
                assert (ended.returncode, ended.stdout) == ((1, b"") if is_lost else (0, b"OK\n"))
        if arguments[2:] == ["v"]:
            assert cli("get", "closed").out == b"v"


@pytest.mark.parametrize("redirection", ["< /", "0> written"])
def test_a_stdin_that_cannot_be_read_is_a_plain_error(cli: Cli, server: Running, redirection: str) -> None:
    cli("set", "unreadable", "before")
    ended = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" set unreadable - {redirection}', sys.executable, LAUNCH],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode in {1, 2}
    assert b"Traceback" not in ended.stderr
    assert cli("get", "unreadable").out == b"before"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["get", "long"], ["get", "long", "--json"], ["scan", "long"], ["entry", "long"]])
def test_a_write_that_is_cut_short_is_carried_to_its_end_or_fails(
    cli: Cli, server: Running, tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    assert cli("set", "long", "-", given=b"x" * 300_000).status == 0
    limit = 100_000

    def no_more_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    with out.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-c", LAUNCH, *arguments],
            stdout=file,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            preexec_fn=no_more_room,
            timeout=20,
            check=False,
        )
    assert ended.returncode == 1
    assert b"cannot write the output: File too large" in ended.stderr
    assert out.stat().st_size == limit


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110 - a device
@pytest.mark.parametrize(
    ("arguments", "after"), [(["set", "told", "1"], b"1"), (["incr", "told", "2"], b"7"), (["delete", "told"], None)]
)
def test_a_change_whose_answer_is_lost_is_told_as_done(
    cli: Cli, server: Running, tmp_path: Path, arguments: list[str], after: bytes | None
) -> None:
    assert cli("set", "told", "5").status == 0
    ended = call(arguments, Row("empty", "full", "C.UTF-8", ()), None, tmp_path)
    assert ended.status == 1
    assert ended.err == (
        b"error: it is done, but the answer is lost: cannot write the output: No space left on device\n"
    )
    assert (cli("get", "told").out or None) == after


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110 - a device
@pytest.mark.parametrize("arguments", [["--help"], ["get", "-h"], ["table"], ["--version"]])
def test_a_help_that_cannot_be_written_is_an_error(cli: Cli, tmp_path: Path, arguments: list[str]) -> None:
    for stdout, status, err in (
        ("closed", 1, b"error: cannot write the output: stdout is closed\n"),
        ("full", 1, b"error: cannot write the output: No space left on device\n"),
        ("gone", 0, b""),
        ("non-blocking", 0, b""),
    ):
        ended = call(arguments, Row("empty", stdout, "C.UTF-8", ()), None, tmp_path)
        assert (ended.status, ended.err) == (status, err)
        if stdout == "non-blocking":
            assert ended.out == cli(*arguments).out


def test_every_byte_is_written_however_few_are_taken_at_a_time(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    refused = iter([True, False] * 1_000)

    def short(descriptor: int, data: bytes) -> int:
        if next(refused):
            raise BlockingIOError
        return write(descriptor, data[:3])

    data = bytes(range(256))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        streams.write_stdout(data)
        streams.write_stderr(data)
    assert capfdbinary.readouterr() == (data, data)


def test_what_others_print_goes_the_same_way(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch, streams.carried_stdout():
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        print("å" * 10_000)  # noqa: T201 - as typer and rich do
    assert capfdbinary.readouterr().out == "å".encode() * 10_000 + b"\n"


def test_an_error_of_the_disk_comes_out_of_what_others_print(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, streams.carried_stdout():
        patch.setattr(os, "write", full)
        with pytest.raises(OutputFailed, match="No space left on device"):
            print("a help")  # noqa: T201
        streams.write_stderr(b"nobody to tell")


@pytest.mark.parametrize("given", [b"", b"a", b"a\n", b"\n\na", b"a\n" * 3_000_000, b"x" * 3_000_000 + b"\ny"])
def test_lines_are_found_however_they_come(given: bytes) -> None:
    with stdin_of(given):
        assert list(streams.stdin_lines(len(given))) == given.removesuffix(b"\n").split(b"\n")[: len(given)]


def test_more_than_was_allowed_is_refused() -> None:
    with stdin_of(b"x" * 100), pytest.raises(UsageError, match="stdin is longer than 99 bytes"):
        list(streams.stdin_lines(99))
