from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.fixture
def made(cli: Cli, folder: Path) -> Path:
    """The folder of a config and its certificates."""
    assert cli("init").status == 0
    return folder / "certs"


def test_init_makes_the_configured_pair_with_further_names(cli: Cli, made: Path) -> None:
    for name in ("server.pem", "server.key"):
        (made / name).unlink()
    result = cli("certs", "init", "--host", "db.example.net", "--host", "192.0.2.7")
    assert result.status == 0
    assert sorted(result.out.decode().splitlines()) == [str(made / "server.key"), str(made / "server.pem")]
    names = json.loads(cli("certs", "show", "--json").out.splitlines()[0])["names"]
    assert {"localhost", "db.example.net", "192.0.2.7"} <= set(names)


def test_init_overwrites_nothing(cli: Cli, made: Path) -> None:
    before = (made / "server.pem").read_bytes()
    result = cli("certs", "init")
    assert result.status == 2
    assert "nothing is overwritten" in result.err
    assert (made / "server.pem").read_bytes() == before


def test_init_needs_no_config_where_the_paths_are_given(cli: Cli, folder: Path) -> None:
    result = cli("certs", "init", "--tls-certificate", "c/a.pem", "--tls-key", "c/a.key", "--json")
    assert result.json["ca"] == str(folder / "c/ca.pem")
    assert (folder / "c/a.key").exists()


@pytest.mark.parametrize("command", ["init", "renew", "show", "check"])
def test_without_a_config_the_error_names_the_ways_out(cli: Cli, command: str) -> None:
    result = cli("certs", command)
    assert result.status == 2
    assert "--tls-certificate" in result.err
    assert "`kvsd init`" in result.err


def test_show_tells_of_the_certificate_and_of_its_ca(cli: Cli, made: Path) -> None:
    text = cli("certs", "show").out.decode()
    assert f"certificate  {made / 'server.pem'}\n" in text
    assert f"certificate  {made / 'ca.pem'}\n" in text
    assert "names        localhost, 127.0.0.1, ::1\n" in text


def test_check_finds_a_fresh_pair_good(cli: Cli, made: Path) -> None:
    result = cli("certs", "check")
    assert result.status == 0
    assert [line.split()[:2] for line in result.out.decode().splitlines()] == [
        ["ok", "expiry"],
        ["ok", "chain"],
        ["ok", "host"],
        ["ok", "key"],
    ]


def test_check_exits_1_where_something_is_wrong(cli: Cli, made: Path) -> None:
    result = cli("certs", "check", "--host", "example.net")
    assert result.status == 1
    assert "WRONG  host    not valid for example.net" in result.out.decode()
    documents = [json.loads(line) for line in cli("certs", "check", "--host", "x.y", "--json").out.splitlines()]
    assert [document["about"] for document in documents if not document["ok"]] == ["host"]


def test_renew_keeps_the_key_and_says_what_is_left_to_do(cli: Cli, made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    result = cli("certs", "renew", "--host", "db.example.net")
    assert (result.status, result.out) == (0, f"{made / 'server.pem'}\n".encode())
    assert "restart the server" in result.err
    assert [name for name in before if before[name] != (made / name).read_bytes()] == ["server.pem"]
    assert cli("certs", "check", "--host", "db.example.net").status == 0
    assert cli("certs", "renew", "--json").json["files"] == [str(made / "server.pem")]
    assert cli("certs", "check", "--host", "db.example.net").status == 0
