"""A clean place to run commands in, and a real server for them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvsd.server
from kvsd.cli.main import main
from kvsd.config import load

PATIENCE_SECONDS = 20


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    status: int
    out: bytes
    err: str

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The error that the last line of stderr tells as JSON."""
        return json.loads(self.err.splitlines()[-1])["error"]


Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment that says nothing about kvsd."""
    for name in [name for name in os.environ if name.startswith("KVSD_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Runs a command in this process; its stdin is `given`."""

    def run(*arguments: str, given: bytes = b"") -> Result:
        capfdbinary.readouterr()
        with stdin_of(given):
            status = main(arguments)
        out, err = capfdbinary.readouterr()
        return Result(status, out, err.decode())

    return run


@contextmanager
def stdin_of(given: bytes) -> Iterator[None]:
    """Has this process read `given` from its real stdin."""
    before = os.dup(0)
    with tempfile.TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    # Not pytest's, which is a terminal to nobody and may be read by nobody.
    theirs, sys.stdin = sys.stdin, os.fdopen(0, closefd=False)
    try:
        yield
    finally:
        sys.stdin.close()
        sys.stdin = theirs
        os.dup2(before, 0)
        os.close(before)


@dataclass(frozen=True)
class Running:
    """A server with a config file that `kvsd init` wrote; its port is only known to whoever asks."""

    folder: Path
    port: int


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with a_server(tmp_path_factory.mktemp("server") / "kvsd") as running:
        yield running


@contextmanager
def a_server(folder: Path) -> Iterator[Running]:
    """A server in a thread of this process, with what `kvsd init` wrote into the folder."""
    assert main(["init", str(folder)]) == 0
    config = load(folder / "config.yaml", flags={"server.listen_port": ("--listen-port", 0)}, environ={})
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []
    ready = threading.Event()

    async def serve() -> None:
        async with kvsd.server.run(config) as server:
            stop = asyncio.Event()
            started.append((asyncio.get_running_loop(), stop, server.port))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(PATIENCE_SECONDS)
    loop, stop, port = started[0]
    yield Running(folder, port)
    loop.call_soon_threadsafe(stop.set)
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """As `server`, for one test alone: what it makes is seen by no other."""
    with a_server(tmp_path / "own") as running:
        monkeypatch.chdir(running.folder)
        monkeypatch.setenv("KVSD_PORT", str(running.port))
        yield running


@pytest.fixture
def server(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Has commands find the server as they do in the folder of its config.yaml."""
    monkeypatch.chdir(running.folder)
    monkeypatch.setenv("KVSD_PORT", str(running.port))
    return running
