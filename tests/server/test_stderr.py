"""A log that nobody takes: nobody waits for it, what was lost is told, and order and content of the rest stay."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsd.config import LogFormat, LogLevel
from kvsd.server.reporting import make_reporter
from kvsd.server.stderr import HELD_BYTES, Stderr, never_blocking

from .peers import PASSWORD_HASH

LINE = "x" * 999 + "\n"
LOST = "log lines were lost, since nobody took them"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while end not in data:
        piece = os.read(fd, 1 << 16)
        assert piece, data[-200:]
        data += piece
    return data


def test_what_is_written_arrives_whole_and_in_order(pipe: tuple[int, int]) -> None:
    stream = Stderr(pipe[1])
    for number in range(2_000):
        stream.write(f"{number}\n")
    stream.write("fünf \udcff\n")
    stream.drain()
    numbers = "".join(f"{number}\n" for number in range(2_000))
    assert read_until(pipe[0], b"cff\n").decode() == numbers + "fünf \\udcff\n"


def test_threads_may_write_at_the_same_time(pipe: tuple[int, int]) -> None:
    stream = Stderr(pipe[1])

    def write(name: str) -> None:
        for number in range(100):
            stream.write(f"{name}{number}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.write("end\n")
    lines = read_until(pipe[0], b"end\n").decode().splitlines()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name}{number}" for number in range(100)]


def test_a_full_pipe_makes_nobody_wait_and_what_was_lost_is_told_where_it_is_missing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Stderr(pipe[1]))
    reporter = make_reporter(LogLevel.INFO, LogFormat.JSON)
    count = HELD_BYTES // 50
    for number in range(count):
        reporter.info("line", number=number)
    assert stream._held_bytes <= HELD_BYTES
    data = read_until(pipe[0], LOST.encode())
    reporter.info("last", number=count)
    data += read_until(pipe[0], b'"last"')
    stream.drain()
    data += os.read(pipe[0], 1 << 16) if not data.endswith(b"\n") else b""
    *told, lost, last = [json.loads(line) for line in data.splitlines()]
    assert [line["number"] for line in told] == list(range(len(told)))
    assert lost["event"] == LOST
    assert lost["level"] == "warning"
    assert lost["count"] == count - len(told)
    assert last["number"] == count


def test_the_end_waits_for_what_is_written_but_not_for_ever(pipe: tuple[int, int]) -> None:
    stream = Stderr(pipe[1])
    for _ in range(200):
        stream.write(LINE)
    started = time.monotonic()
    stream.drain(0.1)
    assert time.monotonic() - started < 5
    stream.write("end\n")
    reader = threading.Thread(target=read_until, args=(pipe[0], b"end\n"))
    reader.start()
    stream.drain(5)
    assert not stream._texts
    reader.join()


def test_a_descriptor_that_others_made_nonblocking_takes_all(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream = Stderr(pipe[1])
    for _ in range(200):
        stream.write(LINE)
    stream.write("end\n")
    assert read_until(pipe[0], b"end\n") == LINE.encode() * 200 + b"end\n"


@pytest.mark.parametrize("destination", ["full disk", "reader that has gone", "closed"])
def test_a_destination_that_fails_is_none_of_the_server_s_business(pipe: tuple[int, int], destination: str) -> None:
    fd = pipe[1]
    match destination:
        case "full disk":
            if not Path("/dev/full").exists():
                pytest.skip("the system has no /dev/full")
            fd = os.open("/dev/full", os.O_WRONLY)
        case "reader that has gone":
            os.close(pipe[0])
        case "closed":
            fd = os.dup(fd)
            os.close(fd)
    stream = Stderr(fd)
    stream.write(LINE)
    stream.drain(5)
    assert not stream._texts
    if destination == "full disk":
        os.close(fd)


def test_within_the_block_everything_that_writes_to_stderr_goes_the_same_way(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", before := open(2, "w", closefd=False))  # noqa: SIM115 - the process's own
    sys.stderr.write("before\n")
    with never_blocking():
        sys.stderr.write("within\n")
        assert sys.stderr.fileno() == 2
    assert sys.stderr is before
    sys.stderr.write("after\n")
    before.close()
    assert capfd.readouterr().err == "before\nwithin\nafter\n"


@pytest.mark.parametrize("stream", [None, "without a descriptor"])
def test_without_a_descriptor_stderr_stays_what_it_is(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    monkeypatch.setattr(sys, "stderr", stream and io.StringIO())
    before = sys.stderr
    with never_blocking():
        assert sys.stderr is before


def test_what_a_full_disk_has_swallowed_is_counted_once_there_is_room(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [5]
    write = os.write

    def write_or_fail(fd: int, data: bytes) -> int:
        if fd == pipe[1] and full[0]:
            full[0] -= 1
            if full[0] == 4:
                return write(fd, bytes(data)[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_or_fail)
    monkeypatch.setattr(sys, "stderr", stream := Stderr(pipe[1]))
    make_reporter(LogLevel.INFO, LogFormat.JSON)
    for number in range(5):
        stream.write(f"line {number}\n")
    cut, line, lost = read_until(pipe[0], b"}\n").splitlines()
    assert (cut, line) == (b"lin", b"line 4")
    assert json.loads(lost)["count"] == 4


# The server as a process


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_server_whose_log_nobody_reads_serves_and_stops(tmp_path: Path, certificate_dir: Path, tls: bool) -> None:
    """A pipe of one page is full after some lines; each connection causes one."""
    (tmp_path / "config.yaml").write_text(
        json.dumps(
            {
                "server": {
                    "listen_port": 0,
                    "disable_tls": not tls,
                    "tls_certificate": str(certificate_dir / "server.pem"),
                    "tls_key": str(certificate_dir / "server.key"),
                    "log_level": "debug",
                },
                "kvsd": {"root_dir": "data", "users": [{"username": "u", "password_hash": PASSWORD_HASH}]},
            }
        )
    )
    reading, writing = os.pipe()
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "kvsd", "serve", "--config", str(tmp_path / "config.yaml")],
            stdout=subprocess.PIPE,
            stderr=writing,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().split()[3].rpartition(":")[2])
                for _ in range(400):
                    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                        with contextlib.suppress(ConnectionError):
                            while client.recv(4096):
                                pass
                server.send_signal(signal.SIGTERM)
                assert server.wait(15) == 0
            finally:
                server.kill()
    finally:
        os.close(reading)
        os.close(writing)
