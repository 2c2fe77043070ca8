"""The manual keeps its word: every command of docs/operations.md is carried out as it stands there."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

import kvsd
from kvsd.errors import KvsdError
from tests.documents import Example, examples

MANUAL = Path(__file__).parent.parent / "docs" / "operations.md"
PATIENCE_SECONDS = 30
BLOCK = re.compile(r"(?:<!-- given: ([^\n]+) -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)

TOOLS = ("bash", "flock")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(subprocess.run(["which", tool], capture_output=True, check=False).returncode for tool in TOOLS),
        reason=f"the manual uses {', '.join(TOOLS)}",
    ),
]


def blocks() -> list[tuple[str, list[Example]]]:
    """What is given before each block, "" where nothing is, and its commands."""
    return [(given, examples(text)) for given, _, text in BLOCK.findall(MANUAL.read_text("utf-8"))]


def test_no_block_of_the_manual_is_passed_over() -> None:
    text = MANUAL.read_text("utf-8")
    assert text.count("```") == 2 * len(blocks())
    assert {language for _, language, _ in BLOCK.findall(text)} == {"console"}
    assert len(re.findall(r"^ *\$ ", text, re.MULTILINE)) == sum(len(steps) for _, steps in blocks())
    assert re.findall(r"<!-- given: (.+) -->", text) == [given for given, _ in blocks() if given]
    assert {given for given, _ in blocks() if given} == set(SITUATIONS)


class Machine:
    """The folder in which somebody reads the manual, with `kvsd` in the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        (tools / "kvsd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvsd "$@"\n')
        (tools / "kvsd").chmod(stat.S_IRWXU)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("KVSD_")},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "KVSD_SERVER_LISTEN_PORT": str(self.port),
        }
        self.run("kvsd init .")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def table(self, name: str) -> Path:
        return self.folder / "data" / "namespaces" / "default" / name

    def start(self) -> None:
        assert "kvsd ready" in self.run("(kvsd serve 2>> kvsd.log &) | head -n 1").stdout

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the server, if one runs, and wait for that."""
        for lock in self.folder.glob("**/lock"):
            with lock.open() as file, suppress(ProcessLookupError):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.kill(int(file.read()), number)
                    self.run(f"flock {lock} true")

    def connect(self) -> kvsd.Client:
        config = kvsd.config.load(self.folder / "config.yaml", environ={}).client
        return kvsd.connect(
            port=self.port, username=config.username, password=config.password, ca=config.ca, timeout=PATIENCE_SECONDS
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    try:
        yield machine
    finally:
        machine.stop()


# What is given


def flip(segments: list[Path], value: bytes) -> None:
    """Damage the newest entry with this value."""
    segment = max(path for path in segments if value in path.read_bytes())
    data = bytearray(segment.read_bytes())
    data[data.rindex(value)] ^= 1
    segment.write_bytes(data)


@contextmanager
def damaged_entry(machine: Machine) -> Iterator[None]:
    with machine.connect() as db:
        db.set("hello", "rust of before")
        db.table("carts").set("ben", "bread")
    machine.stop()
    flip(list(machine.table("default").glob("*.seg")), b"rust of before")
    machine.start()
    yield


@contextmanager
def interrupted_append(machine: Machine) -> Iterator[None]:
    machine.stop(signal.SIGKILL)
    (machine.folder / "kvsd.log").write_text("")
    with max(machine.table("default").glob("*.seg")).open("r+b") as file:
        data = file.read().rstrip(b"\0")
        file.seek(len(data))
        file.write(b"half of an entry")
    machine.start()
    yield
    assert not list(machine.folder.glob("data/**/*.torn-*"))


@contextmanager
def writer(machine: Machine) -> Iterator[None]:
    """Somebody writes until the server stops; the backup has all of it."""
    acknowledged = 0
    begun = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        with machine.connect() as db, suppress(KvsdError):
            while True:
                db.set(f"written:{acknowledged}", bytes(1_000))
                acknowledged += 1
                if acknowledged == 50:
                    begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    yield
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    for lock in ("data/lock", "backup/lock"):
        assert (machine.folder / lock).exists()
    machine.stop()
    (machine.folder / "data").rename(machine.folder / "data.aside")
    machine.run("cp -a backup data")
    machine.start()
    with machine.connect() as db:
        # The one that was under way may have been carried out.
        assert db.count("written:") in {acknowledged, acknowledged + 1}
    machine.stop()
    machine.run("rm -r data && mv data.aside data")
    machine.start()


@contextmanager
def unopenable_table(machine: Machine) -> Iterator[None]:
    with machine.connect() as db:
        db.table("carts").set("ann", "apples and pears")
        db.table("carts").set("ben", "butter")
    machine.stop(signal.SIGKILL)  # so that the start reads all
    for hint in machine.table("carts").glob("*.hint"):
        hint.unlink()
    flip(list(machine.table("carts").glob("*.seg")), b"apples and pears")
    machine.start()
    yield


SITUATIONS: dict[str, Callable[[Machine], AbstractContextManager[None]]] = {
    "a damaged entry": damaged_entry,
    "an interrupted append": interrupted_append,
    "a writer": writer,
    "a table that cannot be opened": unopenable_table,
}


def shape(output: str) -> re.Pattern[str]:
    """`...` stands for anything in its line; on a line of its own, for any lines."""
    lines = [
        r"(?:.*\n)*" if line == "..." else r"[^\n]*".join(map(re.escape, line.split("..."))) + r"\n"
        for line in output.splitlines()
    ]
    return re.compile("".join(lines))


@pytest.mark.timeout(400)  # ten seconds of processor time, and a hundred processes that wait for a busy machine
def test_the_commands_of_the_manual_do_what_it_says(machine: Machine) -> None:
    for given, steps in blocks():
        with SITUATIONS[given](machine) if given else nullcontext():
            for step in steps:
                done = machine.run(step.command)
                printed = done.stdout + "\n" * (done.stdout[-1:] not in {"", "\n"})
                assert shape(step.output).fullmatch(printed), f"$ {step.command}\n{printed}"
                is_error = step.output.startswith("error: ")
                assert (done.returncode != 0) == is_error, f"$ {step.command}\n{done.stdout}"
