"""Secrets: files that others can read, files that the environment names, and the user whom it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvsd.client.settings import resolve
from kvsd.config import SETTINGS, load
from kvsd.errors import ConfigError
from kvsd.server.authentication import insecure_users
from tests.server.peers import PASSWORD_HASH

USER = f"kvsd: {{users: [{{username: u, password_hash: '{PASSWORD_HASH}'}}]}}\n"
SECRET = [setting for setting in SETTINGS.values() if setting.secret]


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        ("kvsd: {users: [{username: u, password: p}]}", True),
        (USER, True),
        ("client: {password: p}", True),
        ("client: {username: u, password: p}\n" + USER, True),
        ("server: {listen_port: 1}", False),
        # The sample's, which everybody knows.
        ("client: {username: u, password: secret}\n" + USER, False),
        ("client: {username: v, password: secret}\n" + USER, True),
    ],
)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
@pytest.mark.parametrize("named", [True, False])
def test_a_config_whose_secrets_everybody_can_read_is_told(
    tmp_path: Path, text: str, is_secret: bool, mode: int, named: bool
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    path.chmod(mode)
    warnings = load(path if named else None, environ={}, cwd=tmp_path).warnings
    expected = "config.yaml: every user of this machine can read it, and it holds a password; `chmod 600 config.yaml`"
    assert warnings == ((expected,) if is_secret and mode & 0o004 else ())


@pytest.mark.parametrize("setting", SECRET, ids=lambda setting: setting.name)
def test_each_secret_can_come_from_a_file_that_the_environment_names(setting, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\nthe rest\n")
    for name in setting.file_environment:
        config = load(environ={name: str(tmp_path / "secret")}, cwd=tmp_path)
        assert config.value(setting.name) == "hunter2"
        assert config.origins[setting.name] == f"environment {name}"
        assert config.warnings == ()
        for other in setting.environment:
            with pytest.raises(ConfigError, match=f"{other} and {name} are both set") as caught:
                load(environ={name: str(tmp_path / "secret"), other: "hunter3"}, cwd=tmp_path)
            assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\n", b"", b"\n"])
def test_a_file_that_holds_no_secret_is_an_error_that_names_both(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    environ = {"KVSD_PASSWORD_FILE": str(path)}
    with pytest.raises(ConfigError, match=f"^environment KVSD_PASSWORD_FILE: the file {path} "):
        load(environ=environ, cwd=tmp_path)
    with pytest.raises(ConfigError, match=f"environment KVSD_PASSWORD_FILE: the file {path} "):
        resolve(username="u", environ=environ)
    assert load(environ=environ, flags={"client.password": ("--askpass", "p")}, cwd=tmp_path).client.password == "p"
    assert resolve(username="u", password="p", environ=environ).password == "p"


def test_a_client_takes_its_password_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\r\n")
    environ = {"KVSD_USERNAME": "u", "KVSD_PASSWORD_FILE": str(tmp_path / "secret")}
    assert resolve(environ=environ).password == "hunter2"


# The user whom the environment names


def users(tmp_path: Path, text: str, **environ: str) -> tuple[list[tuple[str, str | None]], str]:
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "config.yaml").chmod(0o600)
    (tmp_path / "secret").write_text("hunter2\n")
    config = load(environ={"KVSD_" + name: value for name, value in environ.items()}, cwd=tmp_path)
    return [(user.username, user.password) for user in config.storage.users], config.origins["kvsd.users"]


def test_a_user_and_a_password_in_the_environment_are_the_servers_user(tmp_path: Path) -> None:
    found = users(tmp_path, "server: {listen_port: 1}", USERNAME="ann", PASSWORD="hunter2")
    assert found == ([("ann", "hunter2")], "environment KVSD_USERNAME and KVSD_PASSWORD")
    found = users(tmp_path, "kvsd: {users: }", CLIENT_USERNAME="ann", PASSWORD_FILE=str(tmp_path / "secret"))
    assert found == ([("ann", "hunter2")], "environment KVSD_CLIENT_USERNAME and KVSD_PASSWORD_FILE")


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("server: {listen_port: 1}", {"USERNAME": "ann"}),
        ("server: {listen_port: 1}", {"PASSWORD": "p"}),
        ("client: {username: ann}", {"PASSWORD": "p"}),  # whom this machine's commands log in as, maybe elsewhere
        ("client: {username: ann, password: p}", {}),
    ],
)
def test_half_of_it_or_what_a_file_tells_clients_makes_no_user(
    tmp_path: Path, text: str, environ: dict[str, str]
) -> None:
    assert users(tmp_path, text, **environ) == ([], "default")


def test_users_in_the_file_are_all_there_are(tmp_path: Path) -> None:
    found, _ = users(tmp_path, USER, USERNAME="ann", PASSWORD="hunter2")
    assert [name for name, _ in found] == ["u"]


@pytest.mark.parametrize(("password", "is_refused"), [("hunter2", False), ("secret", True)])
def test_a_password_in_the_environment_stands_in_no_file_so_it_may_be_served(
    tmp_path: Path, password: str, is_refused: bool
) -> None:
    config = load(environ={"KVSD_USERNAME": "ann", "KVSD_PASSWORD": password}, cwd=tmp_path)
    assert password not in repr(config)
    assert ("ann" in insecure_users(config.storage.users)) == is_refused
