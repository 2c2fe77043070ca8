"""Configuration: `load` gives one frozen Config with the origin of every value.

Owns: the settings and where they come from. Must not know what the server or a client does with them, and
must stay cheap to import: every client command does.
"""

from __future__ import annotations

from kvsd.config.load import load
from kvsd.config.search import FILE_NAME
from kvsd.config.settings import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    SETTINGS,
    USERS,
    ClientSettings,
    Config,
    LogFormat,
    LogLevel,
    ServerSettings,
    Setting,
    StorageSettings,
    User,
)
from kvsd.config.template import SAMPLE_PASSWORD, SAMPLE_USERNAME, render

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "FILE_NAME",
    "SAMPLE_PASSWORD",
    "SAMPLE_USERNAME",
    "SETTINGS",
    "USERS",
    "ClientSettings",
    "Config",
    "LogFormat",
    "LogLevel",
    "ServerSettings",
    "Setting",
    "StorageSettings",
    "User",
    "load",
    "render",
]
