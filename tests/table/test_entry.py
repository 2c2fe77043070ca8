"""The bytes of an entry, and what a header vouches for."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.table.entry import (
    HEADER,
    HEADER_BYTES,
    SEAL_VALUE,
    Header,
    Kind,
    encode_header,
    encode_seal,
    header_is_intact,
    seed,
)

MARK = 0x01020304
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def encoded(offset: int = 192, segment_id: int = 1, **fields: int) -> bytes:
    values = {"body_crc": 5, "synced_to": 192, "seq": 9, "timestamp_us": 10, "expires_us": 11, "prev_seq": 8}
    values |= {"kind": Kind.SET, "key_bytes": 1, "value_bytes": 2} | fields
    data, header_crc = encode_header(MARK, seed(segment_id, offset), **values)
    assert header_crc == Header._make(HEADER.unpack(data)).header_crc
    return data


@given(
    body_crc=U32, synced_to=U32, seq=U64, timestamp_us=U64, expires_us=U64, prev_seq=U64,
    kind=st.sampled_from(list(Kind)), key_bytes=st.integers(0, 2**16 - 1), value_bytes=U32,
    batch_index=U32, batch_count=U32,
)  # fmt: skip
def test_every_field_comes_back(**fields: int) -> None:
    header = Header._make(HEADER.unpack(encoded(**fields)))
    assert {name: getattr(header, name) for name in fields} == fields
    assert (header.mark, header.flags) == (MARK, 0)


@pytest.mark.parametrize("at", range(HEADER_BYTES))
def test_a_flip_of_any_header_byte_is_seen(at: int) -> None:
    data = bytearray(encoded())
    assert header_is_intact(data, 0, MARK, seed(1, 192))
    data[at] ^= 0x40
    assert not header_is_intact(data, 0, MARK, seed(1, 192))


@given(offset=st.integers(0, 2**32 - 1), segment_id=st.integers(1, 2**32))
def test_a_header_is_intact_in_its_own_place_alone(offset: int, segment_id: int) -> None:
    data = encoded(offset, segment_id)
    for other in {0, offset ^ 1, offset + 64, 2**32 - 1} - {offset}:
        assert not header_is_intact(data, 0, MARK, seed(segment_id, other))
    assert not header_is_intact(data, 0, MARK, seed(segment_id + 1, offset))


def test_half_a_header_is_none() -> None:
    data = encoded()
    for size in range(HEADER_BYTES):
        assert not header_is_intact(data[:size], 0, MARK, seed(1, 192))
    assert not header_is_intact(data, 1, MARK, seed(1, 192))


def test_a_seal_says_what_stands_before_it() -> None:
    data = encode_seal(
        mark=MARK, crc_seed=seed(3, 0), offset=500, count=7, last_seq=12, digest=99, seq=13, timestamp_us=14
    )
    header = Header._make(HEADER.unpack_from(data))
    assert header_is_intact(data, 0, MARK, seed(3, 500))
    assert (header.kind, header.synced_to, header.seq, header.timestamp_us) == (Kind.SEAL, 500, 13, 14)
    assert SEAL_VALUE.unpack(data[HEADER_BYTES:]) == (7, 12, 99)
    assert header.body_crc == crc32(data[HEADER_BYTES:])
