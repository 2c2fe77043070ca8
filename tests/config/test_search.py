from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest

from kvsd.config import search
from kvsd.config.search import MAX_FILE_BYTES, find
from kvsd.errors import ConfigError

REGULAR = stat.S_IFREG


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_each_place_hides_those_after_it(cwd: Path, tmp_path: Path) -> None:
    environ = {
        "KVSD_CONFIG": "first.yaml",
        "KVSD_SERVER_CONFIG_PATH": "second.yaml",
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "HOME": str(tmp_path / "home"),
    }
    places = [
        write(cwd / "named.yaml", "named"),
        write(cwd / "first.yaml", "first"),
        write(cwd / "second.yaml", "second"),
        write(cwd / "config.yaml", "here"),
        write(tmp_path / "xdg/kvsd/config.yaml", "xdg"),
        write(tmp_path / "home/.config/kvsd/config.yaml", "home"),
    ]
    seen = [find(Path("named.yaml"), environ, cwd), find(None, environ, cwd)]
    del environ["KVSD_CONFIG"]
    seen.append(find(None, environ, cwd))
    del environ["KVSD_SERVER_CONFIG_PATH"]
    seen.append(find(None, environ, cwd))
    places[3].unlink()
    seen.append(find(None, environ, cwd))
    environ["XDG_CONFIG_HOME"] = "relative/is/ignored"
    seen.append(find(None, environ, cwd))
    assert [(found.path, found.data.decode()) for found in seen] == [
        (path, text) for path, text in zip(places, ("named", "first", "second", "here", "xdg", "home"), strict=True)
    ]
    assert not any(found.skipped for found in seen)


def test_no_file_anywhere_is_no_error(cwd: Path) -> None:
    assert find(None, {}, cwd) == search.Found()


def test_an_empty_file_is_a_file(cwd: Path) -> None:
    path = write(cwd / "config.yaml", "")
    assert find(None, {}, cwd).path == path


@pytest.mark.parametrize("environ", [{}, {"KVSD_CONFIG": "gone.yaml"}])
def test_a_file_that_was_named_must_be_readable(cwd: Path, environ: dict[str, str]) -> None:
    write(cwd / "config.yaml", "not what was asked for")
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read: No such file.*kvsd init"):
        find(None if environ else Path("gone.yaml"), environ, cwd)


def test_a_huge_file_is_not_read_whole(cwd: Path) -> None:
    path = write(cwd / "config.yaml", "")
    os.truncate(path, MAX_FILE_BYTES)
    assert len(find(None, {}, cwd).data) == MAX_FILE_BYTES
    os.truncate(path, MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        find(None, {}, cwd)


def test_a_config_that_others_can_write_is_passed_over_and_said(cwd: Path, tmp_path: Path) -> None:
    write(cwd / "config.yaml", "whose password goes where?").chmod(0o646)
    personal = write(tmp_path / ".config/kvsd/config.yaml", "mine")
    found = find(None, {"HOME": str(tmp_path)}, cwd)
    assert found.path == personal
    (skipped,) = found.skipped
    assert skipped.startswith(f"{cwd}/config.yaml is passed over: other users can write it")
    assert find(Path("config.yaml"), {}, cwd).path == cwd / "config.yaml"


def test_a_fifo_does_not_hold_the_command(cwd: Path) -> None:
    os.mkfifo(cwd / "config.yaml", 0o600)
    found = find(None, {}, cwd)
    assert found.path is None
    assert "it is no regular file" in found.skipped[0]


def test_a_folder_of_that_name_is_passed_over(cwd: Path) -> None:
    (cwd / "config.yaml").mkdir()
    assert "Is a directory" in find(None, {}, cwd).skipped[0]


def status(mode: int, owner: int, group: int = 0) -> os.stat_result:
    return os.stat_result((REGULAR | mode, 0, 0, 1, owner, group, 0, 0, 0, 0))


@pytest.mark.parametrize("owner", [0, 1_000])
@pytest.mark.parametrize("link_owner", [0, 1_000])
def test_files_of_the_user_and_of_root_are_trusted(
    monkeypatch: pytest.MonkeyPatch, owner: int, link_owner: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    search._check(status(0o644, owner), link_owner)


@pytest.mark.parametrize(("owner", "link_owner"), [(1_001, 1_001), (1_001, 1_000), (1_000, 1_001), (0, 1_001)])
def test_a_file_or_link_of_another_user_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, owner: int, link_owner: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    with pytest.raises(search._UntrustedError, match="another user"):
        search._check(status(0o600, owner), link_owner)


@pytest.mark.parametrize(
    ("name", "gid", "members", "trusted"),
    [
        ("me", 1_000, [], True),
        ("me", 1_000, ["me"], True),
        ("me", 1_000, ["me", "you"], False),
        ("staff", 1_000, [], False),
        ("me", 20, [], False),
    ],
)
def test_a_group_may_write_only_if_it_is_the_owner_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, gid: int, members: list[str], trusted: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("me", "x", uid, 1_000, "", "/", "")))
    monkeypatch.setattr(grp, "getgrgid", lambda _: grp.struct_group((name, "x", gid, members)))
    if trusted:
        search._check(status(0o664, 1_000, gid), 1_000)
    else:
        with pytest.raises(search._UntrustedError, match="group can write"):
            search._check(status(0o664, 1_000, gid), 1_000)


def test_a_group_without_an_entry_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    monkeypatch.setattr(grp, "getgrgid", missing)
    with pytest.raises(search._UntrustedError, match="group can write"):
        search._check(status(0o660, 1_000, 4_242), 1_000)
