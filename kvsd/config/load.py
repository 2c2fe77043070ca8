"""From flags, environment and file to one Config.

Owns: the precedence (flag > environment > file > default), and the client's defaults, which follow the
server's settings. Must not know what a setting means, nor how a file is written.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvsd.config import services
from kvsd.config.chosen import Chosen, did_you_mean, parsed
from kvsd.config.search import VARIABLES, Found, find
from kvsd.config.settings import (
    DEFAULT_PORT,
    IGNORED,
    SECTIONS,
    SETTINGS,
    USERS,
    ClientSettings,
    Config,
    ServerSettings,
    StorageSettings,
    User,
    variable,
)
from kvsd.config.template import SAMPLE_PASSWORD
from kvsd.errors import DEBUG_VARIABLE, ConfigError

_FOLLOWS: Final = {
    "client.host": "server.listen_host",
    "client.port": "server.listen_port",
    "client.disable_tls": "server.disable_tls",
}
"""Where the client's defaults come from: beside a server's config file, a command needs no address."""

_CALLED: Final[Mapping[str, object]] = {
    "0.0.0.0": "127.0.0.1",  # noqa: S104 - binds nothing
    "::": "::1",
    "0": DEFAULT_PORT,
}
"""What a client calls where a server listens on a wildcard, or on a port that is picked anew at each start."""

_DEFAULT: Final = "default"
_ENVIRONMENT: Final = "environment "

_PREFIX: Final = "KVSD_"

_EXPECTED: Final = {
    "KVSD_URL": "; URLs are for the Python clients, here set KVSD_HOST, KVSD_PORT, KVSD_USERNAME, KVSD_PASSWORD, "
    "KVSD_NAMESPACE and KVSD_TABLE"
}
"""Variables that one may expect, and what to set instead."""

_FOREIGN_PREFIXES: Final = ("KVSD_TEST_", "KVSD_BENCH_")


def load(
    path: Path | None = None,
    *,
    flags: Mapping[str, tuple[str, object]] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    file_required: bool = False,
) -> Config:
    """Every setting from the first source that has it: flag, environment, file, default.

    `path` is what --config says. `flags` maps settings ("server.listen_port") to the flag's name and value;
    the value None is a flag that was not given. `environ` is os.environ by default. An empty variable counts
    as not set, and so does a key of the file without a value. Relative paths in the file and in defaults
    start at the file's folder, all others at `cwd`, by default the working directory. A value that a flag overrides is
    not looked at; every other one is checked, even if the environment overrides it.

    Where the file has no users and the environment says both a user name and a password for clients, that is the user.

    Raises ConfigError: the file cannot be read, or has an unknown or duplicate key; a value is of the wrong
    kind or out of range; there is no file and `file_required` says that one is needed.
    """
    environ = os.environ if environ is None else environ
    cwd = _working_folder() if cwd is None else cwd
    found = find(path, environ, cwd)
    if file_required and found.path is None:
        raise ConfigError(
            f"no config file: {'; '.join(found.skipped) or 'there is no config.yaml in this folder'}. "
            "Write one with `kvsd init`, or name one with --config or KVSD_CONFIG"
        )
    from_flags = _from_flags(flags or {}, cwd)
    in_file, file_warnings = _from_file(found, cwd, from_flags)
    chosen = (
        _defaults(cwd if found.path is None else found.path.parent)
        | in_file
        | _from_environment(environ, cwd, from_flags)
        | from_flags
    )
    for follower, leader in _FOLLOWS.items():
        value, origin = chosen[leader]
        if chosen[follower].origin == _DEFAULT and origin != _DEFAULT:
            chosen[follower] = Chosen(_CALLED.get(str(value), value), f"{leader}, {origin}")

    _name_user(chosen)

    # Any: a field's type and its parser's result are tied where the setting is declared.
    arguments: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, (value, _) in chosen.items():
        section, key = name.split(".")
        arguments[section][key] = value
    config = Config(
        server=ServerSettings(**arguments["server"]),
        storage=StorageSettings(**arguments["kvsd"]),
        client=ClientSettings(**arguments["client"]),
        path=found.path,
        origins={name: origin for name, (_, origin) in chosen.items()},
        warnings=(*found.skipped, *file_warnings, *_useless_variables(environ)),
    )
    _check_together(config)
    return config


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory cannot be found: {error.strerror}; it may have been deleted: change to another"
        ) from None


def _defaults(folder: Path) -> dict[str, Chosen]:
    chosen = {USERS: Chosen((), _DEFAULT)}
    for name, setting in SETTINGS.items():
        default = setting.default
        chosen[name] = Chosen(folder / default if isinstance(default, Path) else default, _DEFAULT)
    return chosen


def _from_file(found: Found, cwd: Path, overridden: Collection[str]) -> tuple[dict[str, Chosen], list[str]]:
    if found.path is None:
        return {}, []
    # Imported here: reading YAML costs 10 ms, which a command without a file saves.
    from kvsd.config.file import from_file

    name = str(found.path.relative_to(cwd) if found.path.is_relative_to(cwd) else found.path)
    chosen, warnings = from_file(found.data, name, found.path.parent, overridden)
    if found.is_public and _holds_secret(chosen):
        warnings.append(f"{name}: every user of this machine can read it, and it holds a password; `chmod 600 {name}`")
    return chosen, warnings


def _holds_secret(in_file: Mapping[str, Chosen]) -> bool:
    """Tell whether there is a password or a hash, but for those of the sample, which everybody knows."""
    values = {name: in_file[name].value for name in in_file}
    username, password, users = values.get("client.username"), values.get("client.password"), values.get(USERS, ())
    assert isinstance(users, tuple)
    return password not in {None, SAMPLE_PASSWORD} or any(
        user.password not in {None, SAMPLE_PASSWORD}
        or (user.password_hash is not None and (username, password) != (user.username, SAMPLE_PASSWORD))
        for user in users
    )


def _from_environment(environ: Mapping[str, str], cwd: Path, overridden: Collection[str]) -> dict[str, Chosen]:
    chosen: dict[str, Chosen] = {}
    for name, setting in SETTINGS.items():
        if name in overridden:
            continue
        # Backwards: the first name has the last word.
        for known, text in reversed(setting.variables(environ)):
            chosen[name] = parsed(setting, text, f"{_ENVIRONMENT}{known}", cwd)
    return chosen


def _name_user(chosen: dict[str, Chosen]) -> None:
    """Make the server's user of what the environment tells clients, where there is no other."""
    username, password = chosen["client.username"], chosen["client.password"]
    if chosen[USERS].value or not all(given.origin.startswith(_ENVIRONMENT) for given in (username, password)):
        return
    user = User(username=str(username.value), password=str(password.value), from_environment=True)
    chosen[USERS] = Chosen((user,), f"{username.origin} and {password.origin.removeprefix(_ENVIRONMENT)}")


def _from_flags(flags: Mapping[str, tuple[str, object]], cwd: Path) -> dict[str, Chosen]:
    return {
        name: parsed(SETTINGS[name], str(value), f"flag {flag}", cwd)
        for name, (flag, value) in flags.items()
        if value is not None
    }


def _useless_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A warning for each variable that looks like ours and sets nothing."""
    of_services = services.find(environ)
    if of_services:
        yield services.warning(of_services)
    known = {*VARIABLES, DEBUG_VARIABLE}
    for setting in SETTINGS.values():
        known.update(setting.environment, setting.file_environment)
    ignored = {variable(name): f"{name} {reason}" for name, reason in IGNORED.items()}
    for name in sorted(set(environ) - set(of_services)):
        if name in ignored:
            yield f"environment {name}: {ignored[name]}"
        elif name.startswith(_PREFIX) and name not in known and not name.startswith(_FOREIGN_PREFIXES):
            yield f"environment {name}: sets nothing{_EXPECTED.get(name) or _nearest(name, known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest of `known`, as the end of a sentence; their common prefix makes none near."""
    suggested = did_you_mean(name.removeprefix(_PREFIX), (other.removeprefix(_PREFIX) for other in known))
    return suggested.replace("did you mean ", f"did you mean {_PREFIX}")


def _check_together(config: Config) -> None:
    memory_bytes, value_bytes = config.server.memory_bytes, config.storage.max_value_bytes
    if memory_bytes < value_bytes:
        origin = config.origins["server.memory_bytes"]
        raise ConfigError(
            f"{config.origins['kvsd.max_value_bytes'] if origin == _DEFAULT else origin}: server.memory_bytes "
            f"({memory_bytes}) must not be less than kvsd.max_value_bytes ({value_bytes}): no client could send "
            "such a value"
        )
