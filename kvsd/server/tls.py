"""The server's side of TLS: its SSLContext, and certificates that make themselves on a first start.

Owns: which versions, keys, ciphers and groups are accepted, and the words for everything that can be wrong with the two
files. Must not know sockets or the configuration, nor what certificates contain.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvsd.errors import ConfigError
from kvsd.server.certificates import Created, create
from kvsd.server.handshake import HandshakeContext, reason_of
from kvsd.server.pem import PASSPHRASE_VARIABLE, Pair, is_encrypted, read_pem
from kvsd.types import to_bytes

_MAX_PASSPHRASE_BYTES = 1024  # OpenSSL's own limit

# A stranger's first message chooses among these. OpenSSL's own list has groups of finite fields, too: 230 ms of the
# processor for ffdhe8192, 6 ms for ffdhe2048, and 5 ms for the curve P-384; these two take 0.1 ms.
_GROUPS: Final = "X25519:P-256"
_ONLY_GROUP: Final = "prime256v1"
"""Before Python 3.15 only one can be said: P-256, which all clients of TLS 1.3 must know. Those that guess X25519 are
asked once more, which costs a round trip."""

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The ciphers of TLS 1.2: with forward secrecy, over curves, without CBC. Those of TLS 1.3 are as OpenSSL has them."""
_SIGNATURES: Final = (
    "ed25519:ed448:ECDSA+SHA256:ECDSA+SHA384:ECDSA+SHA512:RSA-PSS+SHA256:RSA-PSS+SHA384:RSA-PSS+SHA512:"
    "RSA+SHA256:RSA+SHA384:RSA+SHA512"
)

# OpenSSL's reasons for a key of another certificate: of the same kind, of another kind (by version).
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def ensure_certificates(
    certificate: Path, key: Path, *, tls_auto: bool, listen_host: str, hosts: Iterable[str] = ()
) -> Created | None:
    """Sees that both files exist; what was made for that (the caller logs it), or None.

    With `tls_auto`, and where neither file exists, makes them and a CA beside the certificate, which names
    `listen_host` and all of `hosts`. Raises ConfigError where only one of the two exists, neither does without
    `tls_auto`, or making them fails.
    """
    pair = Pair(certificate, key)
    # `create` also finishes what an interrupted call of it left; so with tls_auto it judges what is there.
    if tls_auto and not pair.is_complete():
        return create(certificate, key, [listen_host, *hosts])
    if not pair.exists():
        raise ConfigError(
            f"neither {certificate} nor {key} exists; make them with `kvsd certs init`, or set server.tls_auto: true"
        )
    return None


def server_context(certificate: Path, key: Path, passphrase: str | None = None) -> ssl.SSLContext:
    """A context for TLS 1.2 and up, with an RSA or EC key in PKCS#1, PKCS#8 or SEC1 form, encrypted or not.

    The certificate file may go on with intermediate certificates. Raises ConfigError where a file cannot be
    read or is no PEM, where the two do not belong together, and where the passphrase is missing or wrong.
    """
    if b"-----BEGIN CERTIFICATE-----" not in read_pem(certificate):
        raise ConfigError(
            f"{certificate} holds no certificate in PEM form; "
            "check server.tls_certificate, or make one with `kvsd certs init`"
        )
    key_pem = read_pem(key)
    if b"PRIVATE KEY-----" not in key_pem:
        raise ConfigError(
            f"{key} holds no private key in PEM form; check server.tls_key, or make one with `kvsd certs init`"
        )
    context = HandshakeContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation (1.2 only) lets a client make us work for nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # One ticket is enough to resume a session; each costs a write at every handshake.
    context.num_tickets = 1
    _restrict(context)

    def give_passphrase() -> bytes:
        # Only called for an encrypted key. Without it, OpenSSL would prompt on the terminal.
        if passphrase is None:
            raise ConfigError(f"the key {key} is encrypted; put its passphrase into {PASSPHRASE_VARIABLE}")
        given = to_bytes(passphrase)
        if len(given) > _MAX_PASSPHRASE_BYTES:
            raise ConfigError(f"{PASSPHRASE_VARIABLE} is longer than {_MAX_PASSPHRASE_BYTES} bytes")
        return given

    try:
        context.load_cert_chain(certificate, key, give_passphrase)
    except ssl.SSLError as error:
        raise ConfigError(_explain(error, certificate, key, encrypted=is_encrypted(key_pem))) from None
    return context


def _restrict(context: ssl.SSLContext) -> None:
    """Leave out what is weak, and what would let a stranger have us compute for long."""
    context.set_ciphers(_CIPHERS)
    if hasattr(context, "set_groups"):  # from Python 3.15 on, as the next one
        context.set_groups(_GROUPS)
    else:
        context.set_ecdh_curve(_ONLY_GROUP)
    if hasattr(context, "set_server_sigalgs"):
        context.set_server_sigalgs(_SIGNATURES)


def _explain(error: ssl.SSLError, certificate: Path, key: Path, *, encrypted: bool) -> str:
    reason = reason_of(error)
    if error.reason in _MISMATCHES:
        return (
            f"the key {key} does not belong to the certificate {certificate}; `kvsd certs check` says more, "
            "`kvsd certs init` makes a new pair once both are moved away"
        )
    if encrypted:
        return f"the key {key} does not open: {PASSPHRASE_VARIABLE} is wrong or the file is damaged ({reason})"
    return f"OpenSSL refuses the certificate {certificate} or the key {key}: {reason}; `kvsd certs check` says more"
