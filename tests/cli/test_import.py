"""`kvsd import` takes over the Rust program's data, offline and into a running server."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kvsd.server import offline
from kvsd.server.directory import DataDirectory
from kvsd.server.kvsd_rs import RustFile

from .conftest import Cli, Running

GOLDEN = Path(__file__).parent.parent / "data" / "golden.kvsd"


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    path = tmp_path / "torn.kvsd"
    path.write_bytes(GOLDEN.read_bytes()[:-1])
    return path


def test_every_live_key_reaches_a_running_server(cli: Cli, server: Running) -> None:
    result = cli("import", "--from-kvsd-rs", str(GOLDEN))
    assert (result.status, result.out, result.err) == (0, b"OK imported keys: 147\n", "")
    with RustFile(GOLDEN) as file:
        for number, (key, value) in enumerate(file):
            if number % 10 == 0:
                assert cli("get", key.decode()).out == value


def test_an_offline_import_needs_no_server_and_no_configuration(cli: Cli, folder: Path) -> None:
    result = cli("import", "--from-kvsd-rs", str(GOLDEN), "--root-dir", "data", "--json")
    assert result.status == 0, result.err
    assert result.json == {"imported": 147, "entries": 313, "deletions": 69, "unchecked": 0, "torn_bytes": 0}
    assert (folder / "data/namespaces/default/default").is_dir()


def test_an_offline_import_into_a_data_folder_in_use_is_refused(cli: Cli, folder: Path) -> None:
    with DataDirectory(folder / "data"):
        result = cli("import", "--from-kvsd-rs", str(GOLDEN), "--root-dir", "data")
    assert (result.status, result.out) == (2, b"")
    assert "in use by another kvsd" in result.err


def test_a_full_disk_is_no_error_of_the_configuration(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(offline, "write", full)
    result = cli("import", "--from-kvsd-rs", str(GOLDEN), "--root-dir", "data", "--json")
    assert (result.status, result.out, result.error["code"]) == (1, b"", "FAILED")
    assert "cannot import into data: No space left on device; make room" in result.error["message"]


def test_a_torn_tail_is_reported(cli: Cli, torn: Path) -> None:
    result = cli("import", "--from-kvsd-rs", str(torn), "--root-dir", "data")
    assert result.status == 0
    assert "bytes of an interrupted append, which were left out" in result.err


def test_a_damaged_file_imports_nothing(cli: Cli, folder: Path, tmp_path: Path) -> None:
    damaged = bytearray(GOLDEN.read_bytes())
    damaged[29] ^= 1
    (tmp_path / "damaged.kvsd").write_bytes(damaged)
    result = cli("import", "--from-kvsd-rs", str(tmp_path / "damaged.kvsd"), "--root-dir", "data")
    assert (result.status, result.out) == (8, b"")
    assert "damaged at offset 0" in result.err
    assert not (folder / "data").exists()


def test_a_missing_file_is_named(cli: Cli) -> None:
    result = cli("import", "--from-kvsd-rs", "absent.kvsd", "--root-dir", "data")
    assert result.status == 2
    assert "absent.kvsd" in result.err
