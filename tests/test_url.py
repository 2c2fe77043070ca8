from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import ConfigError
from kvsd.url import Url, parse


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("kvsd://db", Url(host="db", port=7379, disable_tls=False)),
        ("KVSD://db/", Url(host="db", port=7379, disable_tls=False)),
        ("kvsd+plain://db:1", Url(host="db", port=1, disable_tls=True)),
        ("kvsd+plain://db?disable_tls=1", Url(host="db", port=7379, disable_tls=True)),
        ("kvsd://db?disable_tls=yes", Url(host="db", port=7379, disable_tls=True)),
        ("kvsd://db?disable_tls=off", Url(host="db", port=7379, disable_tls=False)),
        ("kvsd://[::1]:65535", Url(host="::1", port=65_535, disable_tls=False)),
        ("kvsd://[fe80::1%25eth0]", Url(host="fe80::1%eth0", port=7379, disable_tls=False)),
        ("kvsd://me@db", Url(host="db", port=7379, username="me", disable_tls=False)),
        ("kvsd://me:@db", Url(host="db", port=7379, username="me", password="", disable_tls=False)),
        (
            "kvsd://m%40e:a%3Ab:c%2F%C3%A9+%25@db:7/space/ta-ble_1?ca=a%20b/ca.pem&insecure=1&timeout=2.5",
            Url(
                host="db",
                port=7,
                username="m@e",
                password="a:b:c/é+%",
                namespace="space",
                table="ta-ble_1",
                ca=Path("a b/ca.pem"),
                insecure=True,
                disable_tls=False,
                timeout=2.5,
            ),
        ),
    ],
)
def test_an_address_means_its_parts(text: str, url: Url) -> None:
    assert parse(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has not the form"),
        ("db:7379", "has not the form"),
        ("kvsd:/db", "has not the form"),
        ("kvsd://::1", "has not the form"),
        ("kvsd://db#part", "has not the form"),
        ("kvsd://a:b@c@db", "has not the form"),
        ("redis://db", r"must begin with kvsd:// \(TLS\) or kvsd\+plain://"),
        ("kvsd://", "the host in the address must be"),
        ("kvsd://:7379", "the host in the address must be"),
        ("kvsd://me@", "the host in the address must be"),
        ("kvsd://a b", "the host in the address must be"),
        ("kvsd://[localhost]", "the host in the address must be"),
        ("kvsd://db:", "the port in the address must be a whole number from 1 to 65535"),
        ("kvsd://db:0", "the port in the address"),
        ("kvsd://db:65536", "the port in the address"),
        ("kvsd://@db", "the user name in the address must be"),
        ("kvsd://a%0Ab@db", "the user name in the address must be"),
        ("kvsd://a:b%0D@db", "the password in the address must be on one line"),
        ("kvsd://a:%ff@db", "the password in the address is not UTF-8"),
        ("kvsd://a:\ud800@db", "the password in the address is not UTF-8"),
        ("kvsd://a:%@db", "the password in the address holds a % without two hex digits"),
        ("kvsd://a:%4@db", "the password in the address holds a % without two hex digits"),
        ("kvsd://db/space", "the path in the address must be /namespace/table"),
        ("kvsd://db/space/Table", "the path in the address"),
        ("kvsd://db/a/b/c", "the path in the address"),
        (f"kvsd://db/a/{'b' * 65}", "the path in the address"),
        ("kvsd://db/../b", "the path in the address"),
        ("kvsd://db?user=x", "ca, insecure, disable_tls, timeout, wait at most once"),
        ("kvsd://db?insecure", "key=value"),
        ("kvsd://db?timeout=1&timeout=2", "at most once"),
        ("kvsd://db?timeout=0", "the timeout in the address must be a number of seconds"),
        ("kvsd://db?timeout=nan", "the timeout in the address"),
        ("kvsd://db?insecure=maybe", "the insecure in the address must be true or false"),
        ("kvsd://db?ca=", "the ca in the address must be a path"),
        ("kvsd+plain://db?disable_tls=0", "contradicts itself"),
    ],
)
def test_what_is_no_address_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "kvsd://user:hunter2",
        "kvsd://user:hunter2@db:x",
        "kvsd://user:/hunter2@db",
        "kvsd://user:?hunter2@db",
        "kvsd://user:#hunter2@db",
        "kvsd://user:@hunter2@db",
        "kvsd://user:?hunter2",
        "kvsd://user:1?hunter2=1",
        "kvsd://user:1/hunter2",
        "kvsd://user:hunter2%@db",
        "kvsd://hunter2%0a:x@db",
        "hunter2://db",
    ],
)
def test_a_password_that_is_not_escaped_is_not_repeated_in_the_message(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text)
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_the_password_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(parse("kvsd://user:hunter2@db"))


@given(st.text(), st.text(alphabet="kvsd+plain:/@?#[]%&=.0123456789ab\ud800", max_size=40))
def test_any_text_gives_an_address_or_a_config_error(anything: str, likely: str) -> None:
    for text in (anything, likely, f"kvsd://{anything}", f"kvsd://{likely}"):
        try:
            url = parse(text)
        except ConfigError:
            continue
        assert url.host
        assert url.port
