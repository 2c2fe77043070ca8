"""The errors that only the command line knows, beside those of `kvsd.errors`."""

from __future__ import annotations

import os

from kvsd.errors import KvsdError


class CommandFailed(KvsdError):
    """Something on this side of the connection: a file, the output."""

    code = "FAILED"


class OutputFailed(CommandFailed):
    """The output, or a part of it, cannot be written."""


class UsageError(KvsdError):
    """The arguments make no sense."""

    code = "USAGE"
    exit_status = 2


class KeyNotFound(KvsdError):
    """The key is absent. To the clients that is no error; to a shell script it is one it can ask for."""

    code = "NOT_FOUND"
    exit_status = 3

    def __init__(self, key: str) -> None:
        """`key` is the word of the command line; keys are shown as UTF-8, whatever the locale."""
        super().__init__(f"there is no key {os.fsencode(key).decode('utf-8', 'surrogateescape')}")
