from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kvsd.config import load
from kvsd.errors import ConfigError
from kvsd.server import tls
from kvsd.server.authentication import PasswordHash, insecure_users

from .conftest import Cli

FILES = ["config.yaml", "certs/ca.key", "certs/ca.pem", "certs/server.key", "certs/server.pem"]


def test_it_makes_a_config_and_certificates_and_names_the_next_command(cli: Cli, folder: Path) -> None:
    result = cli("init")
    assert result.status == 0
    assert sorted(result.out.decode().splitlines()) == sorted(FILES)
    assert all((folder / name).is_file() for name in FILES)
    assert result.err.endswith("next: kvsd serve\n")


def test_the_config_loads_without_a_warning_and_its_password_fits_its_hash(cli: Cli, folder: Path) -> None:
    cli("init")
    config = load(environ={}, cwd=folder)
    [user] = config.storage.users
    assert config.warnings == ()
    assert user.username == config.client.username
    assert PasswordHash.parse(user.password_hash).matches(config.client.password.encode())
    assert insecure_users([user]) == {}


def test_passwords_are_random_and_stay_in_the_file(cli: Cli, tmp_path: Path) -> None:
    passwords = set()
    for name in "ab":
        result = cli("init", str(tmp_path / name))
        password = load(tmp_path / name / "config.yaml", environ={}).client.password
        assert password not in result.out.decode() + result.err
        passwords.add(password)
    assert len(passwords) == 2


def test_only_the_owner_can_read_the_secrets(cli: Cli, folder: Path) -> None:
    cli("init")
    for name in ("config.yaml", "certs/ca.key", "certs/server.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_nothing_is_overwritten(cli: Cli, folder: Path) -> None:
    (folder / "config.yaml").write_text("mine")
    result = cli("init")
    assert result.status == 1
    assert "exists already" in result.err
    assert (folder / "config.yaml").read_text() == "mine"
    assert not (folder / "certs").exists()


def test_certificates_that_are_there_stay(cli: Cli, folder: Path) -> None:
    cli("init")
    (folder / "config.yaml").unlink()
    before = (folder / "certs/server.pem").read_bytes()
    assert cli("init").out == b"config.yaml\n"
    assert (folder / "certs/server.pem").read_bytes() == before


def test_a_failure_leaves_no_config_that_would_stop_the_next_run(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(tls, "ensure_certificates", fail)
        assert cli("init").status == 2
    assert not (folder / "config.yaml").exists()
    assert cli("init").status == 0


def test_another_folder_is_made_and_the_next_command_goes_there(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "with space" / "kvsd"
    result = cli("init", str(folder), "--json")
    assert result.json["next"] == f"cd '{folder}' && kvsd serve"
    assert set(result.json["files"]) == {str(folder / name) for name in FILES}


def test_a_folder_that_cannot_be_made_is_an_error(cli: Cli, folder: Path) -> None:
    (folder / "file").touch()
    result = cli("init", "file/below")
    assert (result.status, result.out) == (1, b"")
    assert "cannot write file" in result.err


def test_the_certificate_has_the_names_that_clients_connect_by(cli: Cli, folder: Path) -> None:
    assert cli("init", "--host", "db.example.net", "--host", "192.0.2.7").status == 0
    for host in ("db.example.net", "192.0.2.7", "localhost"):
        assert cli("certs", "check", "--host", host).status == 0


def test_a_name_for_a_certificate_that_is_there_already_is_not_lost_silently(cli: Cli, folder: Path) -> None:
    cli("init")
    (folder / "config.yaml").unlink()
    result = cli("init", "--host", "db.example.net")
    assert result.status == 0
    assert "`kvsd certs renew --host db.example.net`" in result.err
    assert cli("init", "other", "--host", "no name").status == 2
    assert not (folder / "other/config.yaml").exists()
