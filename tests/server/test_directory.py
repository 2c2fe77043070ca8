"""The data directory: one owner, no foreign data, and names that are safe as folders."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.errors import ConfigError
from kvsd.server.directory import DataDirectory, folder_of, folders_in
from kvsd.server.names import TableName
from kvsd.types import NAME


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "a" / "data") as directory:
        assert stat.S_IMODE(directory.root.stat().st_mode) == 0o700
        assert folders_in(directory.root) == []


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by another kvsd \(process {os.getpid()}\)"),
    ):
        DataDirectory(tmp_path)


def test_an_owner_in_another_process_counts_and_its_death_frees_the_directory(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from kvsd.server.directory import DataDirectory\n"
    code += "held = DataDirectory(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        with pytest.raises(ConfigError, match=f"process {other.pid}"):
            DataDirectory(tmp_path)
        other.kill()
        other.wait()
    with DataDirectory(tmp_path):
        pass


def test_a_closed_directory_is_free_and_its_lock_file_stays(tmp_path: Path) -> None:
    for _ in range(2):
        with DataDirectory(tmp_path):
            pass
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("place", ["old.kvsd", "namespaces/default/default/default.kvsd"])
def test_data_of_the_rust_program_refuses_the_start_and_names_the_import(tmp_path: Path, place: str) -> None:
    foreign = tmp_path / place
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.touch()
    with pytest.raises(ConfigError, match=f"{foreign} is a data file of the Rust program.*kvsd import --from-kvsd-rs"):
        DataDirectory(tmp_path)
    foreign.unlink()
    with DataDirectory(tmp_path):
        pass  # the refusal has given up the lock


def test_a_file_in_the_place_of_the_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match=r"cannot use the data directory .*check kvsd.root_dir"):
        DataDirectory(tmp_path / "data")


def test_a_file_system_without_locks_is_told_apart_from_another_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot lock the data directory .*No locks available"):
        DataDirectory(tmp_path)


@pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_pid_that_cannot_be_written_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with DataDirectory(tmp_path), pytest.raises(ConfigError, match=r"in use by another kvsd"):
        DataDirectory(tmp_path)


def test_a_lock_file_that_was_removed_or_made_anew_lets_no_second_owner_in(tmp_path: Path) -> None:
    with DataDirectory(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(ConfigError, match=r"in use by another kvsd \(process unknown\)"):
            DataDirectory(tmp_path)
        assert not (tmp_path / "lock").exists()
        (tmp_path / "lock").touch()
        with pytest.raises(ConfigError, match=r"in use by another kvsd \(process unknown\)"):
            DataDirectory(tmp_path)


def test_a_file_system_that_locks_files_alone_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        DataDirectory(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by another kvsd \(process {os.getpid()}\)"),
    ):
        DataDirectory(tmp_path)


def test_nothing_stays_open_of_a_folder_that_was_refused(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with DataDirectory(tmp_path):
        for _ in range(3):
            with pytest.raises(ConfigError):
                DataDirectory(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


def test_only_folders_with_proper_names_are_tables(tmp_path: Path) -> None:
    for place in ("default/default", "a-1/b_2", "a-1/Upper", ".hidden/t", "a-1/" + "n" * 65):
        (tmp_path / "namespaces" / place).mkdir(parents=True)
    (tmp_path / "namespaces" / "default" / "file").touch()
    assert folders_in(tmp_path) == [TableName("a-1", "b_2"), TableName("default", "default")]
    assert folder_of(tmp_path, TableName("a-1", "b_2")) == tmp_path / "namespaces" / "a-1" / "b_2"


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a.b", "a/b", "..", "a\n", "ä", "a" * 65])
def test_names_that_are_unsafe_as_folders_are_none(name: str) -> None:
    assert NAME.fullmatch(name) is None
