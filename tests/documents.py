"""The examples that stand in a page: what their commands are, and whether they print what the page shows."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

BASH_SECONDS = 60


class Example(NamedTuple):
    """A command of a console block, and the lines that it prints there."""

    command: str
    output: str


def console_blocks(page: Path) -> list[list[Example]]:
    """Return the console blocks of `page`, each with its commands in their order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [
        [Example(*found) for found in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]
        for block in blocks
    ]


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of `page` in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def assert_prints(block: list[Example], folder: Path, **environment: str) -> None:
    """Run the commands of `block` in one shell, and compare what each prints with what the page shows.

    Times, sizes with a fraction and dates are compared by their form alone.
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
        line = output if not output or output.endswith("\n") else f"{output}\n"
        assert _form(line) == _form(example.output), f"$ {example.command}"


def _form(text: str) -> str:
    return re.sub(r"\d+(?:[-T:.+/]\d+)+", "#", text)
