"""Record the picture of a session that README shows: real commands, a real server, an 80-column terminal.

    python docs/record_session.py docs/session.svg

Everything happens in a temporary folder, on a free port of loopback, and stops by itself.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

COLUMNS: Final = 80
COMMANDS: Final = (
    "kvsd set hello rust",
    "kvsd get hello",
    "kvsd set session:ann tok-81 --ttl 30m",
    "kvsd entry session:ann",
    "kvsd incr visits",
    "kvsd scan",
    "kvsd set hello python --if-version 99",
    "kvsd delete hello",
    "kvsd get hello",
    "kvsd ping -c 2",
)
SVG: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Without the web fonts of rich's own template: a picture asks nobody for anything."""


def record() -> str:
    """Return an SVG of `COMMANDS` and all that they print."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSD_")}
        environment |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        subprocess.run([*_kvsd(), "init", "."], cwd=folder, env=environment, capture_output=True, check=True)
        command = [*_kvsd(), "serve", "--listen-port", "0"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                assert server.stdout is not None
                ready = re.match(r"kvsd ready on .*:(\d+) ", server.stdout.readline())
                assert ready is not None, "the server did not start"
                return _picture(Path(folder), environment | {"KVSD_PORT": ready[1]})
            finally:
                server.terminate()


def _picture(folder: Path, environment: dict[str, str]) -> str:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(_run(command, folder, environment)), end="")
        return console.export_svg(title="kvsd", code_format=SVG, unique_id="session")


def _run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Return what `command` writes to a terminal, line by line."""
    ours, theirs = pty.openpty()
    words = command.split()
    with subprocess.Popen(
        [*_kvsd(), *words[1:]], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        parts = []
        while part := _read(ours):
            parts.append(part)
        os.close(ours)
        process.wait(timeout=30)
    text = b"".join(parts).decode().replace("\r\n", "\n").rstrip("\n")
    return text + "\n" if text else ""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""  # the command has ended and closed its side


def _kvsd() -> list[str]:
    return [sys.executable, "-m", "kvsd"]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(record(), "utf-8")
