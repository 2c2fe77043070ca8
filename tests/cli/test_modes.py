"""Modes of all that kvsd makes: what the umask lets through is not what others may do."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import PATIENCE_SECONDS, Cli
from .test_serve import ready

SECRET_NAMES = ("config.yaml", "*.key")


@contextmanager
def serving(umask: int, config: Path) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-m", "kvsd", "serve", "--config", str(config), "--listen-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=umask,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            yield process
            process.terminate()
            process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_others_can_change_nothing_and_read_no_secret(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    before = os.umask(umask)
    try:
        assert cli("init", "etc/kvsd").status == 0
        monkeypatch.setenv("KVSD_CONFIG", "etc/kvsd/config.yaml")
        pair = ("--tls-certificate", "pki/kvsd/server.pem", "--tls-key", "pki/keys/server.key")
        assert cli("certs", "init", *pair).status == 0
    finally:
        os.umask(before)
    config = folder / "etc/kvsd/config.yaml"
    text = config.read_text()
    assert "  root_dir: data\n" in text
    config.write_text(text.replace("  root_dir: data\n", f"  root_dir: {folder}/var/lib/data\n"))
    for name in ("server.pem", "server.key"):
        (folder / "etc/kvsd/certs" / name).unlink()
    for _ in range(2):  # the second run has hints, and what the first one sealed
        with serving(umask, config) as process:
            monkeypatch.setenv("KVSD_PORT", ready(process)[2])
            assert cli("set", "k", "v").status == 0
            assert cli("table", "create", "carts").status == 0
            assert cli("set", "--table", "carts", "k", "v").status == 0
            assert cli("table", "drop", "carts", "--yes").status == 0
    made = [path for path in folder.rglob("*") if path.name != "xdg"]
    assert {path.suffix for path in made} >= {".pem", ".key", ".yaml", ".seg", ".hint"}
    for path in made:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert not mode & 0o022, f"others can change {path}"
        is_secret = any(map(path.match, SECRET_NAMES)) or path.is_relative_to(folder / "var/lib/data")
        assert not is_secret or not mode & 0o077, f"others can read {path}"
        assert path.is_dir() <= (mode & 0o700 == 0o700)
