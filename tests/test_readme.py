"""The README keeps its word: its commands print what it shows, and its examples run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import assert_prints, code_blocks, console_blocks

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


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
    blocks = console_blocks(README)
    assert sum(map(len, blocks)) >= 7
    for block in blocks:
        assert_prints(block, path, KVSD_PORT=port)


def test_the_python_examples_run(folder) -> None:
    path, port = folder
    blocks = code_blocks(README, "python")
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
