"""Every number that a caller can pass to a client: what is none is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import kvsd
import kvsd.aio
from kvsd.client import calls
from kvsd.client.batch import Batch
from kvsd.client.settings import ConnectSettings
from kvsd.errors import ConfigError, InvalidValue

from .fake import SHELLS, AioShell

HUGE = pytest.param(10**5000, id="huge")
"""Python writes no more than 4,300 digits."""

Do = Callable[[str], Callable[..., object]]

WHOLE: dict[str, Callable[[Do, Any], object]] = {
    "set if_version": lambda do, n: do("set")("k", "v", if_version=n),
    "delete if_version": lambda do, n: do("delete")("k", if_version=n),
    "incr amount": lambda do, n: do("incr")("k", n),
    "decr amount": lambda do, n: do("decr")("k", n),
    "scan limit": lambda do, n: do("scan")("k", limit=n),
    "keys limit": lambda do, n: do("keys")("k", limit=n),
    "batch set if_version": lambda _, n: Batch().set("k", "v", if_version=n),
    "batch delete if_version": lambda _, n: Batch().delete("k", if_version=n),
    "batch check version": lambda _, n: Batch().check("k", n),
}
SECONDS: dict[str, Callable[[Do, Any], object]] = {
    "set ttl": lambda do, n: do("set")("k", "v", ttl=n),
    "expire ttl": lambda do, n: do("expire")("k", n),
    "batch set ttl": lambda _, n: Batch().set("k", "v", ttl=n),
}
ACCESS: dict[str, Any] = {"username": "u", "password": "p", "disable_tls": True, "port": 1}
CONNECT: dict[str, list[Any]] = {
    "port": [0, -1, 65_536, 10**5000, 1.5, 7379.0, True, "7379"],
    "timeout": [0, -1, 10**5000, float("nan"), float("inf"), 1e300, True, "5", Decimal(5)],
    "connect_timeout": [0, -1, float("nan"), float("inf"), 1e300, True, "5"],
    "wait": [-1, float("nan"), float("inf"), 1e300, True, "5"],
}
"""By argument of connect, what it does not take."""


@pytest.fixture(params=list(SHELLS))
def do(request: pytest.FixtureRequest) -> Any:
    """A method of a client of nobody: what gets as far as to connect fails with CannotConnect."""
    with SHELLS[request.param](ConnectSettings(**ACCESS)) as client:

        def method(name: str) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                if not isinstance(client, AioShell):
                    result = getattr(client, name)(*arguments, **named)
                    return list(result) if name in {"scan", "keys"} else result
                if name in {"scan", "keys"}:

                    async def collect() -> list[object]:
                        return [item async for item in getattr(client._client, name)(*arguments, **named)]

                    return client._runner.run(collect())
                return client.do(name, *arguments, **named)

            return call

        yield method


@pytest.mark.parametrize("number", [1.9, 1.0, True, "1", b"1", Decimal(1), Fraction(1), float("nan"), object(), [1]])
@pytest.mark.parametrize("parameter", list(WHOLE))
def test_what_is_no_whole_number_is_a_type_error(do: Do, parameter: str, number: object) -> None:
    with pytest.raises(TypeError, match=r"is a whole number \(int\), not"):
        WHOLE[parameter](do, number)


@pytest.mark.parametrize("number", [-1, 2**63, 2**64, 10**19, HUGE, pytest.param(-(10**5000), id="-huge")])
@pytest.mark.parametrize("parameter", list(WHOLE))
def test_a_whole_number_out_of_range_is_an_invalid_value(do: Do, parameter: str, number: int) -> None:
    if number == -1 and parameter.endswith("amount"):
        number = -(2**63) - 1
    with pytest.raises(InvalidValue, match=r"out of range|no integer of 64 bits"):
        WHOLE[parameter](do, number)


@pytest.mark.parametrize("number", ["5", b"5", True, Decimal(5), object(), [5]])
@pytest.mark.parametrize("parameter", list(SECONDS))
def test_what_is_no_time_is_a_type_error(do: Do, parameter: str, number: object) -> None:
    with pytest.raises(TypeError, match="seconds or a timedelta"):
        SECONDS[parameter](do, number)


@pytest.mark.parametrize("number", [0, -1, 0.0, 10**12, HUGE, float("nan"), float("inf"), timedelta(0)])
@pytest.mark.parametrize("parameter", list(SECONDS))
def test_a_time_out_of_range_is_an_invalid_value(do: Do, parameter: str, number: float) -> None:
    with pytest.raises(InvalidValue, match="lives for"):
        SECONDS[parameter](do, number)


@pytest.mark.parametrize("connect", [kvsd.connect, kvsd.aio.connect])
@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, numbers in CONNECT.items() for place in range(len(numbers))]
)
def test_a_setting_that_cannot_work_is_a_config_error(connect: Callable[..., Any], name: str, place: int) -> None:
    with pytest.raises(ConfigError, match="it takes"):
        connect(**{**ACCESS, name: CONNECT[name][place]})


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8", None])
def test_a_pool_of_no_connections_is_a_config_error(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"pool_size is .*; it takes a whole number, 1 or more"):
        kvsd.connect(**ACCESS, pool_size=size)


@pytest.mark.parametrize("parameter", ["set if_version", "delete if_version", *[n for n in WHOLE if "batch" in n]])
def test_a_version_that_nobody_told_is_a_type_error_and_never_no_condition(do: Do, parameter: str) -> None:
    with pytest.raises(TypeError, match="version"):
        WHOLE[parameter](do, None)


def test_the_limits_themselves_are_taken() -> None:
    largest = 2**63 - 1
    for amount in (largest, -largest - 1, 0):
        assert calls.increment("k", amount).message.argument == b"%d" % amount
    assert calls.set_("k", "v", if_version=largest).message.if_version == largest
    assert calls.set_("k", "v", if_version=0).message.if_version == 0
    assert calls.set_("k", "v", ttl=0.0001).message.ttl_ms == 1
