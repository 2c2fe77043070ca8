"""The server's side of TLS: its SSLContext, and certificates that make themselves on a first start.

Owns: which versions and keys are accepted, and the words for everything that can be wrong with the two files.
Must not know sockets or the configuration, nor what certificates contain.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from kvsd.errors import ConfigError
from kvsd.server.certificates import Created, create
from kvsd.server.pem import PASSPHRASE_VARIABLE, Pair, is_encrypted, read_pem
from kvsd.types import to_bytes

_MAX_PASSPHRASE_BYTES = 1024  # OpenSSL's own limit

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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation (1.2 only) lets a client make us work for nothing.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # One ticket is enough to resume a session; each costs a write at every handshake.
    context.num_tickets = 1

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


def _explain(error: ssl.SSLError, certificate: Path, key: Path, *, encrypted: bool) -> str:
    reason = (error.reason or "no reason given").replace("_", " ").lower()
    if error.reason in _MISMATCHES:
        return (
            f"the key {key} does not belong to the certificate {certificate}; `kvsd certs check` says more, "
            "`kvsd certs init` makes a new pair once both are moved away"
        )
    if encrypted:
        return f"the key {key} does not open: {PASSPHRASE_VARIABLE} is wrong or the file is damaged ({reason})"
    return f"OpenSSL refuses the certificate {certificate} or the key {key}: {reason}; `kvsd certs check` says more"
