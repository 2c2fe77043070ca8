"""The README keeps its word: its table of settings is the code's, and its commands print what it shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.config import SETTINGS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- settings: written and checked by tests/test_readme.py -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | `{setting.shown(setting.default)}` | {setting.doc.rstrip('.')} |"
        for name, setting in SETTINGS.items()
    ]
    return "\n".join(rows) + "\n"


def test_the_table_of_settings_is_current() -> None:
    """KVSD_TEST_WRITE=1 writes the table anew."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    written, _, after = rest.partition(END)
    if os.environ.get("KVSD_TEST_WRITE"):
        README.write_text(before + BEGIN + settings_table() + END + after, "utf-8")
    else:
        assert written == settings_table()


def examples() -> list[tuple[str, str]]:
    """Commands of the README's console blocks and what it says they print."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README.read_text("utf-8"), re.DOTALL):
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            found.append((command, output))
    return found


@pytest.fixture
def folder(tmp_path: Path):
    """The README's folder with a server on a free port, started by the README's command."""
    (tmp_path / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    (tmp_path / "certs").mkdir()
    (tmp_path / "config.yaml").chmod(0o600)
    text = README.read_text("utf-8")
    assert "pip install . && kvsd serve --config config.yaml" in text
    command = [sys.executable, "-m", "kvsd", "serve", "--config", "config.yaml", "--listen-port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            found = re.match(r"kvsd ready on 127\.0\.0\.1:(\d+) tls=on ", ready)
            assert found, ready + (server.stderr.read() if server.stderr and not ready else "")
            yield tmp_path, found[1]
        finally:
            server.terminate()
            server.communicate(timeout=20)
    assert server.returncode == 0


def test_the_commands_of_the_readme_print_what_it_shows(folder) -> None:
    path, port = folder
    assert len(examples()) >= 7
    for command, expected in examples():
        words = shlex.split(command)
        assert words[0] == "kvsd"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=path,
            env={**os.environ, "KVSD_PORT": port},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if expected == "...\n":
            assert done.returncode == 0, done.stderr
        elif match := re.fullmatch(r"\[exit status (\d+)\]\n", expected):
            assert (done.returncode, done.stdout) == (int(match[1]), "")
        else:
            assert (done.returncode, done.stdout.rstrip("\n") + "\n") == (0, expected), done.stderr


def test_the_python_examples_run(folder) -> None:
    path, port = folder
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=path,
            env={**os.environ, "KVSD_PORT": port},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
