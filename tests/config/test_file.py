from __future__ import annotations

from pathlib import Path

import pytest

from kvsd.config import SETTINGS, USERS, User
from kvsd.config.file import from_file
from kvsd.errors import ConfigError

FOLDER = Path("/etc/kvsd")
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        from_file(text.encode(), "config.yaml", FOLDER)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "server:\n  listen_prt: 1\n",
            "config.yaml:2: server.listen_prt is unknown; did you mean server.listen_port?",
        ),
        ("server:\n  root_dir: x\n", "config.yaml:2: server.root_dir is unknown; did you mean kvsd.root_dir?"),
        ("listen_port: 1\n", "config.yaml:1: listen_port is unknown; did you mean server.listen_port?"),
        ("users: []\n", "config.yaml:1: users is unknown; did you mean kvsd.users?"),
        ("sever:\n  listen_port: 1\n", "config.yaml:1: sever is unknown; did you mean server?"),
        ("\nimage: x\n", "config.yaml:2: image is unknown; the sections of the file are server, kvsd, client"),
        (
            "kvsd:\n  users:\n    - usrname: a\n      password: b\n",
            "config.yaml:3: kvsd.users[0].usrname is unknown; did you mean kvsd.users[0].username?",
        ),
        (
            "server:\n  listen_port: 1\n  listen_port: 2\n",
            "config.yaml:3: server.listen_port is given twice, first in line 2",
        ),
        (
            "server:\n  listen_port: 65536\n",
            "config.yaml:2: server.listen_port must be a whole number from 0 to 65535, not '65536'",
        ),
        (
            "server:\n  listen_port: true\n",
            "config.yaml:2: server.listen_port must be a whole number from 0 to 65535, not 'true'",
        ),
        (
            "kvsd:\n\n  fsync: often\n",
            "config.yaml:3: kvsd.fsync must be always, interval or never, not 'often'",
        ),
        (
            "server:\n  tls_auto: maybe\n",
            "config.yaml:2: server.tls_auto must be true or false (or 1/0, yes/no, on/off), not 'maybe'",
        ),
        ("server:\n  listen_host: [a, b]\n", "config.yaml:2: server.listen_host must be a single value, not a list"),
        ("client:\n  password: {a: b}\n", "config.yaml:2: client.password must be a single value, not a group of keys"),
        ("server: 7379\n", "config.yaml:1: server must hold settings, each as `key: value`"),
        ("server: []\n", "config.yaml:1: server must hold settings, each as `key: value`"),
        ("kvsd:\n  users: root\n", "config.yaml:2: kvsd.users must be a list of users"),
        ("kvsd:\n  users: {a: b}\n", "config.yaml:2: kvsd.users must be a list of users"),
        (
            "kvsd:\n  users: [a:b]\n",
            "config.yaml:2: kvsd.users[0] must have the keys username and password_hash",
        ),
        ("kvsd:\n  users:\n    - password: x\n", "config.yaml:3: kvsd.users[0].username is missing"),
        (
            "kvsd:\n  users:\n    - username: a\n",
            "config.yaml:3: kvsd.users[0] must have either password_hash or password, and not both",
        ),
        (
            f"kvsd:\n  users:\n    - username: a\n      password: b\n      password_hash: {HASH}\n",
            "config.yaml:3: kvsd.users[0] must have either password_hash or password, and not both",
        ),
        (
            "kvsd:\n  users:\n    - {username: a, password: x}\n    - {username: a, password: y}\n",
            "config.yaml:4: kvsd.users[1].username 'a' is given twice, first in line 3",
        ),
        (
            "server:\n  tls_key_passphrase: x\n",
            "config.yaml:2: server.tls_key_passphrase is not read from a file; "
            "set KVSD_SERVER_TLS_KEY_PASSPHRASE in the environment",
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "client:\n  password: |\n    hunter2\n    hunter2\n",
        "kvsd:\n  users: [{username: a, password_hash: hunter2}]",
        "kvsd:\n  users: [{username: a, password: 'hunter2\n\n  x'}]",
        "kvsd:\n  users: [{username: a, password:hunter2}]",
        "kvsd:\n  users: ['a:hunter2']",
        "client: hunter2",
        "client:\n  password hunter2\n",
    ],
)
def test_a_wrong_secret_is_not_quoted(text: str) -> None:
    assert "hunter2" not in refusal(text)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(f"server: {{listen_port: '{'x' * 100_000}'}}")) < 200


@pytest.mark.parametrize("text", ["server:\nkvsd:\nclient:\n", "server: {listen_port: }", "kvsd: {users: ~}"])
def test_a_key_without_a_value_counts_as_not_there(text: str) -> None:
    chosen, warnings = from_file(text.encode(), "config.yaml", FOLDER)
    assert not [name for name in chosen if name in SETTINGS]
    assert not warnings


def test_users_are_read_as_written() -> None:
    text = (
        f"kvsd:\n  users:\n  - username: a\n    password_hash: {HASH}\n"
        "  - {username: 007, password: yes, password_hash: }\n"
    )
    chosen, _ = from_file(text.encode(), "config.yaml", FOLDER)
    assert chosen[USERS].value == (
        User(username="a", password_hash=HASH),
        User(username="007", password="yes"),
    )
    assert chosen[USERS].origin == "config.yaml:2"


def test_the_file_of_the_rust_program_is_accepted() -> None:
    text = """\
server:
  max_tcp_connections: 10240
  connection_tcp_buffer_bytes: 4096
  authenticate_timeout_milliseconds: 300
  listen_host: 127.0.0.1
  listen_port: "7379"
  disable_tls: false
  tls_certificate: files/localhost.pem
  tls_key: files/localhost.key
kvsd:
  users:
    - username: kvsduser
      password: secret
  root_dir: .kvsd
"""
    chosen, warnings = from_file(text.encode(), "config.yaml", FOLDER)
    assert warnings == [
        "config.yaml:3: server.connection_tcp_buffer_bytes is ignored: here all connections share one read buffer"
    ]
    assert {name: value for name, (value, _) in chosen.items()} == {
        "server.max_tcp_connections": 10_240,
        "server.authenticate_timeout_milliseconds": 300,
        "server.listen_host": "127.0.0.1",
        "server.listen_port": 7379,
        "server.disable_tls": False,
        "server.tls_certificate": FOLDER / "files/localhost.pem",
        "server.tls_key": FOLDER / "files/localhost.key",
        "kvsd.users": (User(username="kvsduser", password="secret"),),
        "kvsd.root_dir": FOLDER / ".kvsd",
    }
