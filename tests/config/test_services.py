"""A pod or a linked container beside a service whose variables look like ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from kvsd.client.settings import resolve
from kvsd.config import SETTINGS, load, services
from kvsd.config.search import VARIABLES
from kvsd.errors import ConfigError

NAMES = sorted({name for setting in SETTINGS.values() for name in setting.environment})
SERVICES = sorted({"KVSD", "KVSD_SERVER", "KVSD_2", *NAMES, *(name.removesuffix("_PORT") for name in NAMES)})
ADDRESSES = ["tcp://10.96.0.7:7379", "udp://10.96.0.7:53", "sctp://10.96.0.7:9", "tcp://[fd00::7]:7379"]


def of_kubernetes(service: str, address: str = ADDRESSES[0]) -> dict[str, str]:
    protocol, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    link = f"{service}_PORT_{port}_{protocol.upper()}"
    return {
        f"{service}_SERVICE_HOST": host,
        f"{service}_SERVICE_PORT": port,
        f"{service}_SERVICE_PORT_KVSD_TLS": port,
        f"{service}_PORT": address,
        link: address,
        f"{link}_PROTO": protocol,
        f"{link}_PORT": port,
        f"{link}_ADDR": host,
    }


def of_docker(service: str) -> dict[str, str]:
    link = f"{service}_PORT_7379_TCP"
    return {
        f"{service}_NAME": "/web/kvsd",
        f"{service}_PORT": ADDRESSES[0],
        f"{link}": ADDRESSES[0],
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": "7379",
        f"{link}_ADDR": "172.17.0.5",
        f"{service}_ENV_LANG": "C",
    }


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(
    "variables", [*(lambda service, a=a: of_kubernetes(service, a) for a in ADDRESSES), of_docker], ids=range(5)
)
def test_a_service_of_any_name_sets_nothing_and_is_told_once(tmp_path: Path, service: str, variables) -> None:
    environ = variables(service)
    config = load(environ=environ, cwd=tmp_path)
    assert set(config.origins.values()) == {"default"}
    [warning] = config.warnings
    assert f"a service called {service.lower().replace('_', '-')};" in warning
    assert f"{service}_PORT" in warning


@pytest.mark.parametrize("service", SERVICES)
def test_a_client_in_a_pod_passes_a_service_over_too(service: str) -> None:
    environ = of_kubernetes(service)
    mine = {"KVSD_USERNAME": "u", "KVSD_PASSWORD": "p", "KVSD_HOST": "h"}
    expected = resolve(environ=mine)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert resolve(environ=environ | mine) == expected
    collides = {"KVSD_PORT", "KVSD_CLIENT_PORT"} & set(environ)
    assert [warning.category for warning in told] == [RuntimeWarning] * len(collides)


def test_another_name_of_the_setting_is_heard(tmp_path: Path) -> None:
    environ = of_kubernetes("KVSD") | {"KVSD_CLIENT_PORT": "7000"}
    assert load(environ=environ, cwd=tmp_path).client.port == 7000
    with pytest.warns(RuntimeWarning, match="a service called kvsd"):
        assert resolve(username="u", password="p", environ=environ).port == 7000


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_PORT")])
@pytest.mark.parametrize("text", ["tcp://", "tcp://host", "http://10.0.0.7:80", "tcp://a b:1", "7379/tcp", "0x10"])
def test_a_port_that_is_only_wrong_is_an_error_as_before(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment {name}: "):
        load(environ={name: text}, cwd=tmp_path)


@pytest.mark.parametrize("name", ["KVSD_HOST", "KVSD_TIMEOUT", "KVSD_SERVER_BACKLOG"])
def test_an_address_in_another_setting_is_an_error_as_before(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment {name}: "):
        load(environ={name: ADDRESSES[0]}, cwd=tmp_path)


@pytest.mark.parametrize("name", [*NAMES, *VARIABLES])
def test_no_variable_of_ours_looks_like_one_of_a_service(name: str) -> None:
    assert services.find({name: "7379"}) == {}


def test_a_variable_of_nobody_is_still_told_apart(tmp_path: Path) -> None:
    config = load(environ=of_kubernetes("KVSD") | {"KVSD_HSOT": "x", "KVSD_NAME": "x"}, cwd=tmp_path)
    assert [warning.partition(":")[0] for warning in config.warnings[1:]] == ["environment KVSD_HSOT"]
