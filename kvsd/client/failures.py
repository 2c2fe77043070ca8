"""What can go wrong between a client and its server, in words.

Owns: the typed error and the text for each way in which opening a connection or waiting for a reply can fail. Knows
nothing of who waits or how; never quotes what a peer has sent, but for the names in a certificate that is trusted.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvsd.client.tls import WRONG_NAME
from kvsd.errors import (
    AuthenticationError,
    CannotConnect,
    CertificateError,
    ClientUnusable,
    ConnectionLost,
    ConnectionRefused,
    InvalidKey,
    KvsdError,
    Timeout,
    UnexpectedMessage,
)

if TYPE_CHECKING:
    from kvsd.client.settings import ConnectSettings

# OpenSSL's numbers (x509_vfy.h); the ssl module has no names for them.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})

# No word of turning TLS off: whoever listens there would be sent the password next.
_WHERE_TO_LOOK = (
    "check host and port against the line `kvsd ready on ...` of the server, whose tls=on says that it does"
)

_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})


def may_come_back(error: KvsdError) -> bool:
    """Whether `error` is what a server's restart looks like while a connection is opened.

    One that stops ends what it has not accepted yet, which a TLS client finds cut off in the handshake.
    """
    return isinstance(error, ConnectionRefused) or (
        isinstance(error, CannotConnect)
        and isinstance(
            error.__cause__, ssl.SSLEOFError | ConnectionResetError | ConnectionAbortedError | BrokenPipeError
        )
    )


def cannot_open(settings: ConnectSettings, error: OSError | ValueError, names: Sequence[str] = ()) -> CannotConnect:
    """For an error of resolving the host, connecting, or the TLS handshake; `names` are those of the certificate."""
    match error:
        case ssl.SSLCertVerificationError():
            return CertificateError(_untrusted(settings, error, names))
        case ssl.SSLEOFError() | ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
            return CannotConnect(
                f"the server at {settings.address} closed the connection during the handshake; {_WHERE_TO_LOOK}"
            )
        case ssl.SSLError(reason=str() as reason) if reason in _NOT_TLS:
            return CannotConnect(f"what listens at {settings.address} does not speak TLS; {_WHERE_TO_LOOK}")
        case ssl.SSLError():
            # Only those that OpenSSL raised have a reason.
            why: object = getattr(error, "reason", None) or error
            return CannotConnect(f"the TLS handshake with {settings.address} failed: {why}; TLS 1.2 or newer is needed")
        case socket.gaierror():
            return CannotConnect(f"the host {settings.host} cannot be resolved: {error.strerror}; check the name")
        case OSError():
            kind = ConnectionRefused if isinstance(error, ConnectionRefusedError) else CannotConnect
            return kind(
                f"cannot connect to {settings.address}: {error.strerror or error}; is `kvsd serve` running there?"
            )
        case _:  # a host that no resolver would take: too long a label, a NUL
            return CannotConnect(f"{settings.host!r} is no host name; check the name")


def no_name(settings: ConnectSettings, seconds: float) -> Timeout:
    """For a host whose name server did not answer."""
    return Timeout(
        f"the host {settings.host} was not resolved within {seconds:.3g} s: no name server answers; "
        "check the network, or connect by address"
    )


def no_handshake(settings: ConnectSettings, seconds: float) -> Timeout:
    """For an opening that took too long."""
    return Timeout(
        f"the server at {settings.address} accepted no handshake within {seconds:.3g} s; "
        "it may be full (server.max_tcp_connections) or unreachable"
    )


def no_reply(settings: ConnectSettings, *, may_be_applied: bool) -> Timeout:
    """For a call that took longer than the settings allow."""
    return Timeout(
        f"no reply from the server at {settings.address} within {settings.timeout_seconds:.3g} s"
        + _fate(may_be_applied),
        may_be_applied=may_be_applied,
    )


def no_turn(settings: ConnectSettings) -> Timeout:
    """For a call that was never sent: its client had too many others under way."""
    return Timeout(
        f"the call waited {settings.timeout_seconds:.3g} s for its turn behind other calls of this client and was not "
        f"sent to {settings.address}; make fewer at once, use get_many and set_many, or raise timeout"
    )


def no_free_connection(settings: ConnectSettings, pool_size: int) -> Timeout:
    """For a thread that found all connections of its client in use."""
    return Timeout(
        f"all {pool_size} connections to {settings.address} were in use for {settings.timeout_seconds:.3g} s; "
        "raise pool_size"
    )


def lost(settings: ConnectSettings, error: OSError | None, *, may_be_applied: bool) -> ConnectionLost:
    """For a connection that ended before a reply; `error` is None where the server closed it in order."""
    how = "closed the connection" if error is None else f"is no longer connected ({error.strerror or error})"
    return ConnectionLost(
        f"the server at {settings.address} {how} before it answered" + _fate(may_be_applied),
        may_be_applied=may_be_applied,
    )


def given_up(settings: ConnectSettings, reason: KvsdError, *, may_be_applied: bool) -> ConnectionLost:
    """For the calls that waited behind the one whose reply ended the connection."""
    return ConnectionLost(
        f"the connection to {settings.address} was given up: {reason}" + _fate(may_be_applied),
        may_be_applied=may_be_applied,
    )


def speaks_tls(settings: ConnectSettings) -> CannotConnect:
    """For a TLS alert in answer to a plain client."""
    return CannotConnect(f"the server at {settings.address} speaks TLS; leave out --disable-tls (disable_tls=)")


def hung_up_on_plain_client(settings: ConnectSettings, *, may_be_applied: bool) -> ConnectionLost:
    """For a server that closed a connection without TLS and never said a word."""
    return ConnectionLost(
        f"the server at {settings.address} closed the connection without a word; "
        "if it speaks TLS, leave out --disable-tls (disable_tls=)" + _fate(may_be_applied),
        may_be_applied=may_be_applied,
    )


def wrong_credentials(settings: ConnectSettings) -> AuthenticationError:
    """For a server that refused the credentials and told no reason, so as not to help guessing."""
    return AuthenticationError(f"the server at {settings.address} refused the user name or the password; check both")


def plain_server(settings: ConnectSettings) -> UnexpectedMessage:
    """For a call beyond what a server can do that answers Hello as the Rust program does."""
    return UnexpectedMessage(
        f"the server at {settings.address} can do plain get, set and delete on default/default only; use a kvsd server"
    )


def key_for_no_plain_server(settings: ConnectSettings) -> InvalidKey:
    """For a key that has no String frame, and a server that takes no other."""
    return InvalidKey(
        f"the server at {settings.address} takes keys of UTF-8 without CR LF only; use another key, or a kvsd server"
    )


def interrupted(settings: ConnectSettings) -> ConnectionLost:
    """For a connection in whose midst an exception came, such as that of a signal handler."""
    return ConnectionLost(f"an exception of this program interrupted what was under way with {settings.address}")


def silent(settings: ConnectSettings) -> ConnectionLost:
    """For a connection that is ended because nothing came for as long as a call may take."""
    return ConnectionLost(f"the server at {settings.address} was silent for {settings.timeout_seconds:.3g} s")


def closed_by_us(settings: ConnectSettings) -> ConnectionLost:
    """For calls that were under way when their client was closed."""
    return ConnectionLost(f"this client of {settings.address} is closed; connect again")


def closed(settings: ConnectSettings) -> ClientUnusable:
    """For calls on a client that was closed."""
    return ClientUnusable(f"this client of {settings.address} is closed; connect again")


def foreign_loop(settings: ConnectSettings) -> ClientUnusable:
    """For calls on an asyncio client from another loop than its own."""
    return ClientUnusable(
        f"this client of {settings.address} belongs to another event loop, and so do its connections; "
        "connect again in this one"
    )


def forked(settings: ConnectSettings) -> ClientUnusable:
    """For calls on an asyncio client in a child process."""
    return ClientUnusable(
        f"this client of {settings.address} belongs to the process before the fork, and so does its event loop; "
        "connect again in this process"
    )


def unsent(error: ConnectionLost | Timeout) -> ConnectionLost | Timeout:
    """The same for a call that was still to be sent, behind something that had to be asked first."""
    return type(error)(str(error).removesuffix(_MAYBE))


_MAYBE = "; the request may have been carried out"


def _fate(may_be_applied: bool) -> str:
    return _MAYBE if may_be_applied else ""


def _untrusted(settings: ConnectSettings, error: ssl.SSLCertVerificationError, names: Sequence[str]) -> str:
    who = f"the certificate of {settings.address}"
    match error.verify_code:
        case code if code in _UNKNOWN_AUTHORITY:
            trusted = f"the CA file {settings.ca}" if settings.ca else "any authority that this system trusts"
            return f"{who} was not signed by {trusted}; pass the CA that signed it with --ca FILE (ca=)"
        case code if code in WRONG_NAME:
            only = f", only to {', '.join(names)}" if names else ""
            return (
                f"{who} is not made out to {settings.host}{only}; connect by a name that it holds, or add this one on "
                f"the server with `kvsd certs renew --host {settings.host}` and restart it"
            )
        case code if code == _EXPIRED:
            return f"{who} has expired; renew it on the server with `kvsd certs renew` and restart it"
        case code if code == _NOT_YET_VALID:
            return f"{who} is not valid yet; check the clocks of both machines"
        case _:
            return f"{who} was not accepted: {error.verify_message}"
