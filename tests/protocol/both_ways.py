"""A message and its bytes, held against each other."""

from __future__ import annotations

from collections.abc import Sequence

from kvsd.errors import ProtocolError
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.limits import Limits
from kvsd.protocol.messages import Message, encode

_LIMITS = Limits()


def outcome(data: bytes, limits: Limits = _LIMITS) -> object:
    """What a decoder makes of `data`: a message, Refused, None where bytes are missing, or the ProtocolError."""
    decoder = Decoder(limits)
    decoder.feed(data)
    try:
        return decoder.next_message()
    except ProtocolError as error:
        return error


def check(message: Message, data: bytes) -> None:
    """`message` is written as `data`, and read from it, in any two pieces."""
    assert encode(message) == data
    assert outcome(data + b"*") == message
    for cut in range(len(data)):
        decoder = Decoder()
        decoder.feed(data[:cut])
        assert decoder.next_message() is None
        decoder.feed(data[cut:])
        assert decoder.next_message() == message


def check_in_pieces(message: Message, sizes: Sequence[int]) -> None:
    """`message` comes back once its bytes have arrived, in pieces of `sizes` and the rest, and not before."""
    data, decoder = encode(message), Decoder()
    for size in sizes:
        decoder.feed(data[:size])
        data = data[size:]
        if data:
            assert decoder.next_message() is None
    decoder.feed(data)
    assert decoder.next_message() == message
