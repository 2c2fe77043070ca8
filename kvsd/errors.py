"""The error hierarchy, and the one table that maps wire codes to classes and exit statuses.

Owns: every exception that kvsd raises on purpose. Must not know sockets or files.
"""

from __future__ import annotations

from typing import ClassVar, Final

DEBUG_VARIABLE: Final = "KVSD_DEBUG"
"""The environment variable that, set to anything, has a command show an unexpected error with its traceback."""


class KvsdError(Exception):
    """Base of all errors; `str()` says what happened, why, and what to do, and never holds a secret."""

    code: ClassVar[str] = "UNDEFINED"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1


class ConfigError(KvsdError):
    """The server or a command refuses to start: a setting, a certificate, or the data directory is unfit."""

    code = "CONFIG"
    exit_status = 2


class ProtocolError(KvsdError):
    """The peer broke the wire format; nothing that follows on this connection can be understood."""


class AuthenticationError(KvsdError):
    """The peer's credentials were refused, or did not come in time."""

    code = "UNAUTHENTICATED"
    exit_status = 5


class RequestError(KvsdError):
    """One request failed; the connection and the requests beside it go on."""


class InvalidKey(RequestError):
    """The key is longer than the server allows."""

    code = "INVALID_KEY"
    exit_status = 2


class InvalidValue(RequestError):
    """The value is longer than the server allows; or there is no such number, time, name or setting."""

    code = "INVALID_VALUE"
    exit_status = 2


class Forbidden(RequestError):
    """The user may not do this."""

    code = "FORBIDDEN"
    exit_status = 5


class TableNotFound(RequestError):
    """No such namespace or table."""

    code = "TABLE_NOT_FOUND"
    exit_status = 3


class Conflict(RequestError):
    """A condition of the request did not hold; `version` is what the key has, 0 none, None where it is not told.

    Also a table or namespace that cannot be made, since it exists, or not dropped, such as one that is not empty.
    """

    code = "CONFLICT"
    exit_status = 4

    def __init__(self, message: str, version: int | None = None) -> None:
        super().__init__(message)
        self.version = version


class Gone(RequestError):
    """What was asked for existed and has been dropped."""

    code = "GONE"


class Busy(RequestError):
    """The server is at one of its limits; nothing was applied, a later try may succeed."""

    code = "BUSY"
    retryable = True


class Loading(RequestError):
    """The table is still being recovered; a later try may succeed."""

    code = "LOADING"
    retryable = True


class ReadOnly(RequestError):
    """The table takes no values, or no writes at all: the disk is full, or an append or a sync of its log failed."""

    code = "READ_ONLY"


class TableUnavailable(RequestError):
    """The table could not be opened, or its actor has crashed; the other tables go on."""

    code = "TABLE_UNAVAILABLE"


class UnexpectedMessage(RequestError):
    """A message that makes no sense at this point of the conversation."""

    code = "UNEXPECTED_MESSAGE"


class InternalError(RequestError):
    """A fault of the server; its log has the details."""

    code = "INTERNAL"


class StorageError(KvsdError):
    """A table's files cannot be trusted or understood; concerns that table, not the server."""

    code = "CORRUPT_LOG"
    exit_status = 8


class CorruptLog(StorageError):
    """Damage among synced entries, at a byte `offset` of the file `path` (both None when told by a server)."""

    def __init__(self, message: str, path: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class UnsupportedFormat(StorageError):
    """The file is intact, and of a version or kind that this program does not know."""


class ConnectionLost(KvsdError, ConnectionError):
    """The connection ended before the reply; `may_be_applied` says whether the request may have been carried out.

    Another try finds another connection. Where none can be had at all, the error is CannotConnect.
    """

    code = "CONNECTION_LOST"
    exit_status = 6

    def __init__(self, message: str, *, may_be_applied: bool = False) -> None:
        super().__init__(message)
        self.may_be_applied = may_be_applied


class CannotConnect(KvsdError, ConnectionError):
    """No connection can be opened, so nothing was sent: a wrong name or port, no way there, TLS on one side only.

    As long as nobody mends that, another try ends alike.
    """

    code = "CANNOT_CONNECT"
    exit_status = 6
    may_be_applied: ClassVar[bool] = False


class ConnectionRefused(CannotConnect, ConnectionRefusedError):
    """Nobody listens there: the server is not running, or not yet; `connect(wait=...)` tries again for a while."""

    code = "CONNECTION_REFUSED"


class CertificateError(CannotConnect):
    """The server's certificate was not accepted; nothing was sent, and no other try will end differently."""

    code = "CERTIFICATE"


class ClientUnusable(KvsdError, RuntimeError):
    """The client was closed, or belongs to another event loop or to the process before a fork: connect again here."""

    code = "CLIENT_UNUSABLE"


class Timeout(KvsdError, TimeoutError):
    """No reply in time; `may_be_applied` says whether the request may still take effect."""

    code = "TIMEOUT"
    exit_status = 7

    def __init__(self, message: str, *, may_be_applied: bool = False) -> None:
        super().__init__(message)
        self.may_be_applied = may_be_applied


CLASS_OF_WIRE_CODE: dict[str, type[KvsdError]] = {
    cls.code: cls
    for cls in (
        ProtocolError,
        AuthenticationError,
        InvalidKey,
        InvalidValue,
        Forbidden,
        TableNotFound,
        Conflict,
        Gone,
        Busy,
        Loading,
        ReadOnly,
        TableUnavailable,
        UnexpectedMessage,
        InternalError,
        CorruptLog,
    )
}


def from_wire(code: str, message: str) -> KvsdError:
    """The error that a Fail message stands for; a code that we do not know keeps its name in the text."""
    cls = CLASS_OF_WIRE_CODE.get(code)
    if cls is None:
        return RequestError(f"{code}: {message}" if message else code)
    return cls(message or f"the server answered {code}")
