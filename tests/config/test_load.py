from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from kvsd.config import (
    DEFAULT_PORT,
    SETTINGS,
    USERS,
    Config,
    Setting,
    User,
    load,
)
from kvsd.config.settings import SECTIONS
from kvsd.errors import ConfigError

# Every setting finds two values here that differ from each other; the first also differs from its default.
POOL = (
    *("2000", "2001", "20000000", "20000001", "true", "false"),
    *("never", "interval", "debug", "error", "json", "console", "a", "b", "0.25", "0.75"),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def samples(setting: Setting) -> tuple[str, str]:
    """Two texts with different values, the first not the default's."""
    found: dict[object, str] = {}
    for text in POOL:
        try:
            found.setdefault(setting.parse(text), text)
        except ValueError:
            continue
    first = next(text for value, text in found.items() if value != setting.default)
    return first, next(text for text in found.values() if text != first)


def meaning(setting: Setting, text: str, folder: Path) -> object:
    value = setting.parse(text)
    return folder / value if isinstance(value, Path) else value


every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@every_setting
def test_a_flag_beats_the_environment(setting: Setting, tmp_path: Path) -> None:
    high, low = samples(setting)
    config = load(flags={setting.name: ("--flag", high)}, environ={setting.environment[0]: low}, cwd=tmp_path)
    assert config.value(setting.name) == meaning(setting, high, tmp_path)
    assert config.origins[setting.name] == "flag --flag"


@every_setting
def test_a_flag_that_was_not_given_sets_nothing(setting: Setting, tmp_path: Path) -> None:
    config = load(flags={setting.name: ("--flag", None)}, environ={}, cwd=tmp_path)
    assert config.origins[setting.name] == "default"


@every_setting
def test_the_environment_beats_the_file(setting: Setting, tmp_path: Path) -> None:
    high, low = samples(setting)
    section, key = setting.name.split(".")
    write(tmp_path, f"{section}:\n  {key}: {low}\n" if setting.in_file else "")
    config = load(environ={setting.environment[0]: high}, cwd=tmp_path)
    assert config.value(setting.name) == meaning(setting, high, tmp_path)
    assert config.origins[setting.name] == f"environment {setting.environment[0]}"
    assert not config.warnings


@pytest.mark.parametrize("setting", [s for s in SETTINGS.values() if s.in_file], ids=lambda s: s.name)
def test_the_file_beats_the_default(setting: Setting, tmp_path: Path) -> None:
    high, _ = samples(setting)
    section, key = setting.name.split(".")
    path = write(tmp_path, f"# a comment\n{section}:\n  {key}: {high}\n")
    config = load(environ={}, cwd=tmp_path)
    assert config.value(setting.name) == meaning(setting, high, tmp_path)
    assert config.origins[setting.name] == "config.yaml:3"
    assert config.path == path


@every_setting
def test_without_any_source_the_default_holds(setting: Setting, tmp_path: Path) -> None:
    config = load(environ={setting.environment[0]: ""}, cwd=tmp_path)
    default = tmp_path / setting.default if isinstance(setting.default, Path) else setting.default
    assert config.value(setting.name) == default
    assert config.origins[setting.name] == "default"


@every_setting
def test_each_name_of_a_variable_works_and_the_earlier_one_wins(setting: Setting, tmp_path: Path) -> None:
    high, low = samples(setting)
    names = list(setting.environment)
    assert names[0] == f"KVSD_{setting.name.upper().replace('.', '_')}"
    while names:
        environ = dict.fromkeys(names, low) | {names[0]: high}
        config = load(environ=environ, cwd=tmp_path)
        assert config.value(setting.name) == meaning(setting, high, tmp_path)
        assert config.origins[setting.name] == f"environment {names.pop(0)}"


def wrong_for(setting: Setting, folder: Path) -> str:
    """No parser takes a line break but the path's, which takes no NUL."""
    return "\0" if isinstance(meaning(setting, samples(setting)[0], folder), Path) else "a\nb"


@every_setting
def test_a_variable_that_another_name_of_it_overrides_is_still_checked(setting: Setting, tmp_path: Path) -> None:
    high, _ = samples(setting)
    first, *others = setting.environment
    for variable in others:
        with pytest.raises(ConfigError, match=rf"^environment {variable}: \w+\.{setting.name.split('.')[1]} must "):
            load(environ={first: high, variable: wrong_for(setting, tmp_path)}, cwd=tmp_path)


@every_setting
def test_a_value_in_the_file_that_the_environment_overrides_is_still_checked(setting: Setting, tmp_path: Path) -> None:
    if not setting.in_file:
        return
    high, _ = samples(setting)
    section, key = setting.name.split(".")
    write(tmp_path, f"{section}:\n  {key}: {json.dumps(wrong_for(setting, tmp_path))}\n")
    with pytest.raises(ConfigError, match=f"{setting.name} must be "):
        load(environ={setting.environment[0]: high}, cwd=tmp_path)


@every_setting
def test_what_a_flag_overrides_is_not_looked_at(setting: Setting, tmp_path: Path) -> None:
    high, _ = samples(setting)
    wrong = wrong_for(setting, tmp_path)
    section, key = setting.name.split(".")
    write(tmp_path, f"{section}:\n  {key}: {json.dumps(wrong)}\n" if setting.in_file else "")
    # KVSD_DISABLE_TLS is a name of two settings.
    own = [name for name in setting.environment if sum(name in other.environment for other in SETTINGS.values()) == 1]
    config = load(flags={setting.name: ("--flag", high)}, environ=dict.fromkeys(own, wrong), cwd=tmp_path)
    assert config.value(setting.name) == meaning(setting, high, tmp_path)
    with pytest.raises(ConfigError, match=f"{setting.name} must be "):
        load(flags={setting.name: ("--flag", None)}, environ={setting.environment[0]: wrong}, cwd=tmp_path)


def test_every_field_is_a_setting_with_a_word_of_explanation() -> None:
    names = {f"{section}.{entry.name}" for section, cls in SECTIONS.items() for entry in fields(cls)}
    assert names == {*SETTINGS, USERS}
    assert all(setting.doc.endswith(".") for setting in SETTINGS.values())


def test_the_names_of_the_rust_program_are_heard(tmp_path: Path) -> None:
    config = load(
        environ={
            "KVSD_LOG": "trace",
            "KVSD_HOST": "far",
            "KVSD_USERNAME": "u",
            "KVSD_PASSWORD": "p",
            "KVSD_DISABLE_TLS": "1",
            "KVSD_SERVER_MAX_CONNECTIONS": "7",
            "KVSD_SERVER_CONNECTION_TCP_BUFFER_BYTES": "4096",
            "KVSD_SERVER_AUTHENTICATE_TIMEOUT_MILLISECONDS": "300",
            "KVSD_SERVER_HOST": "near",
            "KVSD_SERVER_PORT": "1234",
            "KVSD_DIR": "d",
            "KVSD_TLS_CERT": "c",
            "KVSD_TLS_KEY": "k",
        },
        cwd=tmp_path,
    )
    server, client = config.server, config.client
    assert (server.log_level, server.max_tcp_connections, server.authenticate_timeout_milliseconds) == ("debug", 7, 300)
    assert (server.listen_host, server.listen_port, server.disable_tls) == ("near", 1234, True)
    assert (server.tls_certificate, server.tls_key) == (tmp_path / "c", tmp_path / "k")
    assert config.storage.root_dir == tmp_path / "d"
    assert (client.host, client.username, client.password, client.disable_tls) == ("far", "u", "p", True)
    assert config.warnings == (
        "environment KVSD_SERVER_CONNECTION_TCP_BUFFER_BYTES: server.connection_tcp_buffer_bytes is ignored: "
        "here all connections share one read buffer",
    )


def test_the_short_names_set_the_client(tmp_path: Path) -> None:
    environ = {f"KVSD_{name}": "1" for name in ("PORT", "CA", "INSECURE", "DISABLE_TLS", "TIMEOUT")}
    client = load(environ=environ, cwd=tmp_path).client
    assert (client.port, client.ca, client.insecure, client.disable_tls, client.timeout) == (
        1,
        tmp_path / "1",
        True,
        True,
        1.0,
    )


def test_a_misspelt_variable_is_not_silent(tmp_path: Path) -> None:
    environ = {
        "KVSD_SERVER_LISTEN_PRT": "secret of the user",
        "KVSD_XYZZY": "",
        "KVSD_TEST_ANYTHING": "1",
        "KVSD_BENCH_ANYTHING": "1",
        "OTHER": "1",
    }
    assert load(environ=environ, cwd=tmp_path).warnings == (
        "environment KVSD_SERVER_LISTEN_PRT: sets nothing; did you mean KVSD_SERVER_LISTEN_PORT?",
        "environment KVSD_XYZZY: sets nothing",
    )


def test_relative_paths_start_where_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "cwd").mkdir()
    write(tmp_path / "etc", "server: {tls_key: key.pem, tls_certificate: /abs/cert.pem}\nclient: {ca: ../ca.pem}\n")
    config = load(
        Path("../etc/config.yaml"),
        flags={"kvsd.root_dir": ("--root-dir", Path("data"))},
        environ={"KVSD_CA": "ca.pem"},
        cwd=tmp_path / "cwd",
    )
    assert config.server.tls_key is not None
    assert config.server.tls_key.resolve() == tmp_path / "etc/key.pem"
    assert config.server.tls_certificate == Path("/abs/cert.pem")
    assert config.client.ca == tmp_path / "cwd/ca.pem"
    assert config.storage.root_dir == tmp_path / "cwd/data"


def test_the_default_data_folder_lies_beside_the_file_wherever_the_server_is_started(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    config = load(write(tmp_path / "etc", ""), environ={}, cwd=tmp_path)
    assert config.storage.root_dir == tmp_path / "etc/data"
    assert load(environ={}, cwd=tmp_path).storage.root_dir == tmp_path / "data"


@pytest.mark.parametrize(
    ("server", "host", "port", "disable_tls"),
    [
        ("{}", "127.0.0.1", DEFAULT_PORT, False),
        ("{listen_host: example.org, listen_port: 7000, disable_tls: on}", "example.org", 7000, True),
        ("{listen_host: 0.0.0.0, listen_port: 0}", "127.0.0.1", DEFAULT_PORT, False),
        ("{listen_host: '::', disable_tls: off}", "::1", DEFAULT_PORT, False),
        ("{listen_host: '[::1]'}", "::1", DEFAULT_PORT, False),
    ],
)
def test_the_client_follows_the_servers_file(
    tmp_path: Path, server: str, host: str, port: int, disable_tls: bool
) -> None:
    write(tmp_path, f"server: {server}\n")
    client = load(environ={}, cwd=tmp_path).client
    assert (client.host, client.port, client.disable_tls) == (host, port, disable_tls)


def test_what_the_client_is_told_does_not_follow(tmp_path: Path) -> None:
    write(tmp_path, "server:\n  listen_host: a\n  listen_port: 1\n  disable_tls: yes\nclient: {disable_tls: no}\n")
    config = load(flags={"client.port": ("--port", 2)}, environ={"KVSD_SERVER_LISTEN_HOST": "b"}, cwd=tmp_path)
    assert (config.client.host, config.client.port, config.client.disable_tls) == ("b", 2, False)
    assert config.origins["client.host"] == "server.listen_host, environment KVSD_SERVER_LISTEN_HOST"


def test_an_error_names_the_flag_or_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^flag --port: client\.port must be .* 65535, not '70000'$"):
        load(flags={"client.port": ("--port", 70_000)}, environ={}, cwd=tmp_path)
    with pytest.raises(ConfigError, match=r"^environment KVSD_PORT: client\.port must be .*, not 'tcp://10'$"):
        load(environ={"KVSD_PORT": "tcp://10"}, cwd=tmp_path)


def test_an_error_in_a_file_elsewhere_names_its_path(tmp_path: Path) -> None:
    path = write(tmp_path, "server: {x: 1}\n")
    with pytest.raises(ConfigError, match=f"^{path}:1: server.x is unknown"):
        load(path, environ={}, cwd=tmp_path / "elsewhere")


def test_a_budget_that_no_value_fits_into_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "kvsd: {max_value_bytes: 512 MiB}\n")
    with pytest.raises(ConfigError, match=r"^config\.yaml:1: server\.memory_bytes \(268435456\) must not be less"):
        load(environ={}, cwd=tmp_path)
    with pytest.raises(ConfigError, match=r"^environment KVSD_SERVER_MEMORY_BYTES: server\.memory_bytes"):
        load(environ={"KVSD_SERVER_MEMORY_BYTES": "128 MiB"}, cwd=tmp_path)


def test_a_server_without_a_file_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file: there is no config\.yaml.*kvsd init"):
        load(environ={}, cwd=tmp_path, file_required=True)
    write(tmp_path, "").chmod(0o666)
    with pytest.raises(ConfigError, match=r"no config file: .*other users can write it.*kvsd init"):
        load(environ={}, cwd=tmp_path, file_required=True)
    assert "other users can write it" in load(environ={}, cwd=tmp_path).warnings[0]


def test_a_flag_for_no_setting_is_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        load(flags={"client.prt": ("--port", 1)}, environ={}, cwd=tmp_path)


def test_secrets_are_in_no_repr_and_are_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "kvsd:\n  users:\n  - {username: a, password: hunter2}\n")
    secrets = [setting for setting in SETTINGS.values() if setting.secret]
    config = load(environ={setting.environment[0]: "hunter2" for setting in secrets}, cwd=tmp_path)
    assert {setting.name for setting in secrets} == {"client.password", "server.tls_key_passphrase"}
    assert "hunter2" not in repr(config)
    for setting in secrets:
        assert config.value(setting.name) == "hunter2"
        assert setting.shown("hunter2") == "(hidden)"
        assert setting.shown(None) == "(none)"
    assert "$argon2id" not in repr(User(username="a", password_hash="$argon2id$x"))


def test_a_switch_is_shown_as_it_is_written() -> None:
    assert SETTINGS["server.tls_auto"].shown(True) == "true"
    assert SETTINGS["server.listen_port"].shown(7379) == "7379"


@pytest.mark.parametrize("given", [{}, {"password": "a", "password_hash": "b"}])
def test_a_user_without_exactly_one_secret_cannot_be_made(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either password_hash or password"):
        User(username="a", **given)


def test_a_config_does_not_change_under_its_readers() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().server.listen_port = 1


def test_a_command_without_a_file_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from kvsd.config import load; load(environ={}, cwd=Path(sys.argv[1]));"
        "print(*{'asyncio', 'cryptography', 'structlog', 'rich', 'yaml', 'difflib'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == ""
