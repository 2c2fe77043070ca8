"""A peer that has shaken hands and then only changes its key, again and again: messages that bring no data."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

KEY_UPDATE: Final = b"\x18\0\0\x01\0" + b"\x16"
"""The message, which asks for nothing, and the type of its record."""


class Shaken(NamedTuple):
    """A connection behind its handshake, whose records are sent by hand."""

    raw: socket.socket
    secret: bytes
    """Of what the client sends."""
    end: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    def records(self, data: bytes) -> bytes:
        self.end.write(data)
        return self.outgoing.read()


def shake_hands(address: tuple[str, int], ca: Path | None, keys: Path) -> Shaken:
    """`keys` is a file of our own."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = str(keys)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    raw = socket.create_connection(address, timeout=10)
    while True:
        try:
            end.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(1 << 16))
    raw.sendall(outgoing.read())
    assert end.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    [line] = [line for line in keys.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")]
    return Shaken(raw, bytes.fromhex(line.split()[2]), end, incoming, outgoing)


def key_updates(secret: bytes, count: int) -> bytes:
    """So many records, each under the key that the one before it has brought."""
    records = b""
    for _ in range(count):
        key, iv = _expand(secret, b"key", 32), _expand(secret, b"iv", 12)
        head = b"\x17\x03\x03" + (len(KEY_UPDATE) + 16).to_bytes(2)
        records += head + AESGCM(key).encrypt(iv, KEY_UPDATE, head)
        secret = _expand(secret, b"traffic upd", 48)
    return records


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    label = b"tls13 " + label
    info = size.to_bytes(2) + bytes([len(label)]) + label + b"\0"
    return HKDFExpand(SHA384(), size, info).derive(secret)
