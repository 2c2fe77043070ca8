"""Where settings come from, and what is refused before anything is sent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kvsd.client.settings import ConnectSettings, resolve
from kvsd.errors import AuthenticationError, ConfigError

URL = "kvsd://url-user:url-password@url-host:7001?ca=url.pem&insecure=1&timeout=1"
ENVIRONMENT = {
    "KVSD_HOST": "env-host",
    "KVSD_PORT": "7002",
    "KVSD_USERNAME": "env-user",
    "KVSD_PASSWORD": "env-password",
    "KVSD_CA": "env.pem",
    "KVSD_INSECURE": "yes",
    "KVSD_DISABLE_TLS": "on",
    "KVSD_TIMEOUT": "2.5",
}


def test_arguments_come_before_the_url_and_the_url_before_the_environment() -> None:
    assert resolve(
        URL,
        host="host",
        port=7000,
        username="user",
        password="password",
        ca="ca.pem",
        insecure=False,
        disable_tls=True,
        timeout=3,
        connect_timeout=4,
        environ=ENVIRONMENT,
    ) == ConnectSettings(
        username="user",
        password="password",
        host="host",
        port=7000,
        ca=Path("ca.pem"),
        insecure=False,
        disable_tls=True,
        timeout_seconds=3,
        connect_timeout_seconds=4,
    )
    assert resolve(URL, environ=ENVIRONMENT) == ConnectSettings(
        username="url-user",
        password="url-password",
        host="url-host",
        port=7001,
        ca=Path("url.pem"),
        insecure=True,
        disable_tls=False,
        timeout_seconds=1,
    )
    assert resolve(environ=ENVIRONMENT) == ConnectSettings(
        username="env-user",
        password="env-password",
        host="env-host",
        port=7002,
        ca=Path("env.pem"),
        insecure=True,
        disable_tls=True,
        timeout_seconds=2.5,
    )


def test_without_anything_else_it_is_the_local_server_over_verified_tls() -> None:
    settings = resolve(username="u", password="p", environ={})
    assert settings == ConnectSettings(username="u", password="p")
    assert (settings.address, settings.disable_tls, settings.insecure) == ("127.0.0.1:7379", False, False)
    assert (settings.timeout_seconds, settings.connect_timeout_seconds) == (30, 10)


@pytest.mark.parametrize(("given", "missing"), [({}, "user name"), ({"username": "u"}, "password")])
def test_missing_credentials_name_every_way_to_give_them(given: dict[str, str], missing: str) -> None:
    with pytest.raises(AuthenticationError, match=f"no {missing} .*username= and password=.*URL.*KVSD_USERNAME"):
        resolve(**given, environ={})


@pytest.mark.parametrize("name", [name for name in ENVIRONMENT if name not in {"KVSD_CA", "KVSD_PASSWORD"}])
def test_a_bad_variable_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        resolve(environ={**ENVIRONMENT, name: "\n"})


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_canonical_name_of_a_variable_counts_and_before_the_short_one(name: str) -> None:
    others = {"KVSD_USERNAME": "u", "KVSD_PASSWORD": "p"}
    canonical = name.replace("KVSD_", "KVSD_CLIENT_")
    chosen = resolve(environ=others | {canonical: ENVIRONMENT[name], name: ""})
    assert chosen == resolve(environ=others | {name: ENVIRONMENT[name]})
    assert chosen != resolve(environ=others)
    assert chosen == resolve(environ=others | {canonical: ENVIRONMENT[name], name: "7"})


@pytest.mark.parametrize("name", [name for name in ENVIRONMENT if name not in {"KVSD_USERNAME", "KVSD_PASSWORD"}])
def test_an_empty_variable_counts_as_not_set(name: str) -> None:
    assert resolve(username="u", password="p", environ={name: ""}) == ConnectSettings(username="u", password="p")


def test_empty_credentials_in_the_environment_are_none() -> None:
    with pytest.raises(AuthenticationError, match="no password"):
        resolve(environ={"KVSD_USERNAME": "u", "KVSD_PASSWORD": ""})


def test_a_variable_that_is_overridden_may_be_nonsense() -> None:
    # Container platforms set KVSD_PORT=tcp://10.0.0.1:7379 for a service named kvsd.
    assert resolve(port=7000, username="u", password="p", environ={"KVSD_PORT": "tcp://10.0.0.1:7379"}).port == 7000


def test_a_bad_password_is_never_quoted() -> None:
    with pytest.raises(ConfigError, match="password") as caught:
        resolve(username="u", password="hunter2\r\n", environ={})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(resolve(username="u", password="hunter2", environ={}))


@pytest.mark.parametrize(
    "given",
    [
        {"host": ""},
        {"port": 0},
        {"port": 65_536},
        {"timeout_seconds": 0},
        {"timeout_seconds": math.nan},
        {"connect_timeout_seconds": math.inf},
        {"username": "a\nb"},
        {"username": "\udcff"},
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ConnectSettings(**{"username": "u", "password": "p", **given})


def test_the_table_comes_from_the_argument_then_the_url_then_the_environment() -> None:
    environ = {"KVSD_NAMESPACE": "env", "KVSD_TABLE": "env"}
    assert resolve("kvsd://u:p@host", environ={}).place is None
    assert resolve("kvsd://u:p@host", environ=environ).place == ("env", "env")
    assert resolve("kvsd://u:p@host/ns/t", environ=environ).place == ("ns", "t")
    assert resolve("kvsd://u:p@host/ns/t", table="other", environ=environ).place == ("ns", "other")
    with pytest.raises(ConfigError, match="is no name"):
        resolve("kvsd://u:p@host", table="../etc", environ={})


def test_a_table_may_be_named_with_its_namespace() -> None:
    environ = {"KVSD_TABLE": "env/stock"}
    assert resolve("kvsd://u:p@host", environ=environ).place == ("env", "stock")
    assert resolve("kvsd://u:p@host", namespace="env", environ=environ).place == ("env", "stock")
    assert resolve("kvsd://u:p@host/ns/t", environ=environ).place == ("ns", "t")
    assert resolve("kvsd://u:p@host/ns/t", table="shop/stock", environ=environ).place == ("shop", "stock")
    assert resolve("kvsd://u:p@host", table="default/default", environ=environ).place is None
    with pytest.raises(ConfigError, match="is not that of the table env/stock"):
        resolve("kvsd://u:p@host", namespace="other", environ=environ)
    for name in ("a/b/c", "/t", "a/"):
        with pytest.raises(ConfigError, match="is no name"):
            resolve("kvsd://u:p@host", table=name, environ={})


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    assert resolve("kvsd://u:p@[::1]:7000", environ={}).address == "[::1]:7000"
