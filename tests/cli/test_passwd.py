from __future__ import annotations

import pytest

from kvsd.server.authentication import PasswordHash

from .conftest import Cli
from .terminal import on_terminal


@pytest.mark.parametrize("given", [b"hunter2", b"hunter2\n", b"hunter2\r\n"])
def test_the_line_on_stdin_is_hashed(cli: Cli, given: bytes) -> None:
    result = cli("passwd", given=given)
    assert (result.status, result.err) == (0, "")
    assert PasswordHash.parse(result.out.decode().removesuffix("\n")).matches(b"hunter2")


def test_the_hash_comes_as_json(cli: Cli) -> None:
    assert PasswordHash.parse(str(cli("passwd", "--json", given=b"x").json["password_hash"])).matches(b"x")


@pytest.mark.parametrize("given", [b"", b"\n", b"two\nlines\n", b"\xff", b"x" * 65_537])
def test_what_no_client_could_send_is_refused(cli: Cli, given: bytes) -> None:
    result = cli("passwd", given=given)
    assert (result.status, result.out) == (2, b"")


def test_a_person_is_asked_twice_without_an_echo() -> None:
    typed = [(b"Password: ", b"hunter2\n"), (b"Again: ", b"hunter2\n")]
    status, screen = on_terminal("passwd", typed=typed)
    assert status == 0
    assert "hunter2" not in screen
    assert PasswordHash.parse(screen.splitlines()[-1]).matches(b"hunter2")


def test_a_slip_of_the_fingers_is_noticed() -> None:
    status, screen = on_terminal("passwd", typed=[(b"Password: ", b"hunter2\n"), (b"Again: ", b"hunter3\n")])
    assert status == 2
    assert "differ" in screen
    assert "$argon2id$" not in screen
