"""First messages of TLS clients, made byte by byte: what no ordinary client library would send."""

from __future__ import annotations

import struct
from collections.abc import Sequence

X25519, P256, P384 = 0x001D, 0x0017, 0x0018
FFDHE = {2048: 0x0100, 3072: 0x0101, 4096: 0x0102, 6144: 0x0103, 8192: 0x0104}

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
AES_128_GCM_1_3 = 0x1301
ECDSA_AES_128_GCM = 0xC02B
ECDSA_AES_128_CBC = 0xC009
"""With SHA-1; TLS 1.2."""


def client_hello(
    *,
    versions: Sequence[int] = (TLS_1_3,),
    ciphers: Sequence[int] = (AES_128_GCM_1_3,),
    groups: Sequence[int] = (P256,),
    shares: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """A record with a ClientHello."""
    extensions = {
        0x002B: _vector8(b"".join(struct.pack(">H", version) for version in versions)),
        0x000A: _vector16(b"".join(struct.pack(">H", group) for group in groups)),
        0x000D: _vector16(struct.pack(">4H", 0x0403, 0x0804, 0x0401, 0x0807)),
        0x000B: _vector8(b"\0"),
        0x0033: _vector16(b"".join(struct.pack(">H", group) + _vector16(share) for group, share in shares)),
    }
    if TLS_1_3 not in versions:
        del extensions[0x002B], extensions[0x0033]
    body = (
        struct.pack(">H", min(max(versions), TLS_1_2))
        + bytes(range(32))
        + _vector8(bytes(32))
        + _vector16(b"".join(struct.pack(">H", cipher) for cipher in ciphers))
        + _vector8(b"\0")
        + _vector16(b"".join(struct.pack(">H", kind) + _vector16(data) for kind, data in extensions.items()))
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + _vector16(message)


def ffdhe_hello(bits: int) -> bytes:
    """One that offers this group of a finite field alone, with a share: OpenSSL's own list has the server compute."""
    return client_hello(groups=[FFDHE[bits]], shares=[(FFDHE[bits], bytes(bits // 8 - 2) + b"\x12\x34")])


def _vector8(data: bytes) -> bytes:
    return bytes([len(data)]) + data


def _vector16(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
