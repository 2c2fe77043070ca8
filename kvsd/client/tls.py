"""The client's TLS context.

Owns: what a client demands of a server before it sends anything. Knows nothing of sockets; what a failed handshake
means for the user is told by `failures`.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Final

from kvsd.errors import ConfigError

if TYPE_CHECKING:
    from kvsd.client.settings import ConnectSettings


WRONG_NAME: Final = frozenset({62, 64})
"""OpenSSL's numbers (x509_vfy.h) for a host name and an address that a certificate does not hold."""

_MAX_NAMES: Final = 20


def names_offered(settings: ConnectSettings, error: BaseException) -> tuple[str, ...]:
    """The names in the server's certificate, where `error` says that it is made out to none that was asked for.

    Takes another handshake, since a failed one does not give the certificate away; it is verified but for the name, and
    nothing is sent. Blocks up to the connect timeout; where it fails there are no names.
    """
    if not isinstance(error, ssl.SSLCertVerificationError) or error.verify_code not in WRONG_NAME:
        return ()
    context = client_context(settings)
    assert context is not None
    context.check_hostname = False
    try:
        with (
            socket.create_connection((settings.host, settings.port), settings.connect_timeout_seconds) as plain,
            context.wrap_socket(plain, server_hostname=settings.host) as connection,
        ):
            certificate = connection.getpeercert() or {}
    except (OSError, ValueError):
        return ()
    names = certificate.get("subjectAltName", ())
    return tuple(str(pair[1]) for pair in names[:_MAX_NAMES])


def client_context(settings: ConnectSettings) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, chain and host name verified by RFC 5280's rules; None where TLS is off.

    The name must be among the certificate's subject alternative names: a common name says nothing (RFC 9525).

    With `ca` only the certificates in that file are trusted, which may be a server's own, else the system's
    authorities. `insecure` verifies nothing: whoever sits on the path can read and change everything.

    Raises ConfigError where the `ca` file cannot be read or holds no certificate.
    """
    if settings.disable_tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if settings.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context
    try:
        context.load_verify_locations(settings.ca)
    except ssl.SSLError:
        raise ConfigError(
            f"the CA file {settings.ca} holds no PEM certificate; pass the server's ca.pem with --ca or ca="
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the CA file {settings.ca}: {error.strerror}; pass the server's ca.pem with --ca or ca="
        ) from None
    return context
