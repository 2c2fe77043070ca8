"""Words for failures that no peer of the other tests brings about."""

from __future__ import annotations

import ssl

import pytest

from kvsd.client import calls, failures
from kvsd.client.settings import ConnectSettings
from kvsd.errors import ProtocolError
from kvsd.protocol.messages import Fail, Success

SETTINGS = ConnectSettings(username="u", password="p", host="::1")


def untrusted(code: int, words: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, words
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (untrusted(26, "unsuitable certificate purpose"), "was not accepted: unsuitable certificate purpose"),
        (ssl.SSLError(1, "no protocols available"), "TLS 1.2 or newer is needed"),
        (ConnectionResetError(), r"closed the connection during the handshake; check host and port"),
        (OSError(113, "No route to host"), "No route to host; is `kvsd serve` running there"),
        (OSError("Multiple exceptions"), "Multiple exceptions; is `kvsd serve` running there"),
    ],
)
def test_every_failed_opening_names_the_address_and_the_reason(error: OSError, words: str) -> None:
    lost = failures.cannot_open(SETTINGS, error)
    assert not lost.may_be_applied
    with pytest.raises(type(lost), match=rf"\[::1\]:7379.*{words}"):
        raise lost


@pytest.mark.parametrize("call", [calls.get("k"), calls.delete("k"), calls.set_("k", "v"), calls.ping()])
def test_a_reply_of_another_kind_is_never_taken_for_a_result(call: calls.Call[object]) -> None:
    odd = Success(b"a value") if call.message.__class__.__name__ in {"Set", "Ping"} else Fail("X", "")
    with pytest.raises(ProtocolError, match="is no reply to the request"):
        call.read(odd, 0.0)
