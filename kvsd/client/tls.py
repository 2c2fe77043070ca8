"""The client's TLS context.

Owns: what a client demands of a server before it sends anything. Knows nothing of sockets; what a failed handshake
means for the user is told by `failures`.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from kvsd.errors import ConfigError

if TYPE_CHECKING:
    from kvsd.client.settings import ConnectSettings


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
