"""The examples that stand in a page: what their commands are, and whether they print what the page shows."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BASH_SECONDS = 60


ROOT = Path(__file__).parent.parent


@contextmanager
def sample_server(folder: Path) -> Iterator[str]:
    """A server with the sample configuration in `folder`, on a free port, which it yields."""
    (folder / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    (folder / "config.yaml").chmod(0o600)
    (folder / "certs").mkdir()
    command = [sys.executable, "-m", "kvsd", "serve", "--config", "config.yaml", "--listen-port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            found = re.match(r"kvsd ready on 127\.0\.0\.1:(\d+) tls=on ", ready)
            assert found, ready + (server.stderr.read() if server.stderr and not ready else "")
            yield found[1]
        finally:
            server.terminate()
            server.communicate(timeout=20)
    assert server.returncode == 0


def run_python(code: str, folder: Path, **environment: str) -> str:
    """Run a program as it stands in a page; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Example(NamedTuple):
    """A command of a console block, and the lines that it prints there."""

    command: str
    output: str


def console_blocks(page: Path) -> list[list[Example]]:
    """Return the console blocks of `page`, each with its commands in their order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [examples(block) for block in blocks]


def examples(block: str) -> list[Example]:
    """Return the commands of a console block."""
    return [Example(*found) for found in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of `page` in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def assert_prints(block: list[Example], folder: Path, **environment: str) -> None:
    """Run the commands of `block` in one shell, and compare what each prints with what the page shows.

    Dates, figures with a fraction, numbers of days and random names are compared by their form alone; paths begin at
    `folder`.
    """
    mark = secrets.token_hex(8)
    script = "".join(f"{example.command}\nstatus=$?; echo {mark}; (exit $status)\n" for example in block)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": programs, "COLUMNS": "80"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BASH_SECONDS,
        check=False,
        text=True,
    )
    *outputs, rest = done.stdout.split(f"{mark}\n")
    assert len(outputs) == len(block), rest
    for example, output in zip(block, outputs, strict=True):
        line = (output if not output or output.endswith("\n") else f"{output}\n").replace(f"{folder}/", "")
        assert _form(line) == _form(example.output), f"$ {example.command}"


def _form(text: str) -> str:
    return re.sub(r"\d+(?:[-T:.+/]\d+)+|\b[0-9a-f]{8}\b|\d+(?= days)", "#", text)
