"""Every command that is registered, each with a way to call it; a new one without a case fails the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from typer.core import TyperGroup
from typer.main import get_command

from kvsd.cli import commands

GOLDEN: Final = Path(__file__).parent.parent / "data" / "golden.kvsd"

VALUE: Final = "värde\n".encode() * 10_000
"""More than a pipe holds, and text that each encoding writes differently."""


def registered() -> list[str]:
    """The names of all commands, as they are typed."""
    root = get_command(commands._app)
    assert isinstance(root, TyperGroup)
    names = []
    for name in root.list_commands(None):  # type: ignore[arg-type]  # needs no context
        command = root.get_command(None, name)  # type: ignore[arg-type]  # needs no context
        names += [f"{name} {part}" for part in command.commands] if isinstance(command, TyperGroup) else [name]
    return names


@dataclass(frozen=True)
class Case:
    """A call of a command, and what it prints and stores where its exit status is 0.

    In arguments and output, KEY is a key of its own, NAME a name of its own, FOLDER a folder of its own.
    """

    arguments: str
    out: str
    before: bytes | None = None
    """The value of KEY."""
    after: Callable[[bytes], bytes | None] | None = None
    """The value of KEY in the end, from what stdin gave; None: what it was."""
    given: Callable[[str], bytes] | None = None
    """What stdin is to hold, from KEY; None: it does not read stdin."""
    setup: tuple[str, ...] = ()
    """Commands before it."""
    status: int = 0


def _step(key: str) -> bytes:
    return json.dumps({"op": "set", "key": key, "value": VALUE.decode()}, ensure_ascii=False).encode() + b"\n"


def _value(_: str) -> bytes:
    return VALUE


def _stored(given: bytes) -> bytes:
    return given


def _stored_step(given: bytes) -> bytes | None:
    return json.loads(given)["value"].encode() if given else None


def _nothing(_: bytes) -> None:
    return None


_FIGURES = r"([a-z_A-Z/ ]+ +[^\n]*\n)+"

CASES: Final = {
    "init": Case("init FOLDER", r"FOLDER/config\.yaml\n(FOLDER/certs/[a-z.]+\n){4}"),
    "serve": Case("serve --config FOLDER/none.yaml", "", status=2),
    "ping": Case("ping", r"[0-9.]+ ms\n"),
    "set": Case("set KEY -", "OK\n", after=_stored, given=_value),
    "get": Case("get KEY", VALUE.decode(), before=VALUE),
    "delete": Case("delete KEY", "OK old value: å\n", before="å".encode(), after=_nothing),
    "entry": Case("entry KEY", r"version +\d+\ntimestamp +\S+\nexpires +never\nvalue +å\n", before="å".encode()),
    "exists": Case("exists KEY", "1\n", before=b"x"),
    "getset": Case("getset KEY -", "å", before="å".encode(), after=_stored, given=_value),
    "getdel": Case("getdel KEY", "å", before="å".encode(), after=_nothing),
    "append": Case("append KEY -", r"\d+\n", before=b"x", after=lambda given: b"x" + given, given=_value),
    "incr": Case("incr KEY -5", "7\n", before=b"12", after=lambda _: b"7"),
    "decr": Case("decr KEY -5", "17\n", before=b"12", after=lambda _: b"17"),
    "expire": Case("expire KEY 1h", "OK\n", before=b"x"),
    "ttl": Case("ttl KEY", "never\n", before=b"x"),
    "persist": Case("persist KEY", "OK\n", before=b"x"),
    "scan": Case("scan KEY", "KEY\tå\n", before="å".encode()),
    "keys": Case("keys KEY", "KEY\n", before=b"x"),
    "count": Case("count KEY", "1\n", before=b"x"),
    "mget": Case("mget KEY", "KEY\tå\n", before="å".encode()),
    "mset": Case("mset KEY -", "OK\n", after=_stored, given=_value),
    "batch": Case("batch", "OK\n", after=_stored_step, given=_step),
    "table create": Case("table create NAME", "OK\n"),
    "table list": Case("table list", r"(\S+\t\S+\t[^\n]*\n)+"),
    "table info": Case("table info default", _FIGURES),
    "table settings": Case("table settings NAME fsync=interval", _FIGURES, setup=("table create NAME",)),
    "table drop": Case("table drop NAME --yes", "OK\n", setup=("table create NAME",)),
    "table reopen": Case("table reopen NAME", "OK\n", setup=("table create NAME",)),
    "namespace create": Case("namespace create NAME", "OK\n"),
    "namespace list": Case("namespace list", r"(\S+\n)+"),
    "namespace drop": Case("namespace drop NAME", "OK\n", setup=("namespace create NAME",)),
    "compact": Case("compact NAME", _FIGURES, setup=("table create NAME",)),
    "import": Case(f"import --from-kvsd-rs {GOLDEN} --root-dir FOLDER", "OK imported keys: 147\n"),
    "sizing": Case("sizing --keys 10", r"([^\n]+\n)+"),
    "config show": Case("config show", r"([a-z_.]+\t[^\t\n]*\t[^\t\n]*\n)+"),
    "config check": Case("config check", r"OK \S+config\.yaml\n"),
    "certs init": Case(
        "certs init --tls-certificate FOLDER/server.pem --tls-key FOLDER/server.key", r"(FOLDER/[a-z.]+\n){4}"
    ),
    "certs show": Case("certs show", r"([^\n]*\n)+"),
    "certs check": Case("certs check", r"(ok +[^\n]+\n)+"),
    "passwd": Case("passwd", r"\$argon2id\$\S+\n", given=lambda _: b"hunter2\n"),
    "version": Case("version", r"kvsd \S+\n"),
}


def matches(case: Case, out: bytes, *, key: str, name: str, folder: Path) -> bool:
    """Whether `out` is what the command prints."""
    pattern = case.out if case.out == VALUE.decode() else case.out.replace("KEY", re.escape(key))
    pattern = pattern.replace("NAME", name).replace("FOLDER", re.escape(str(folder)))
    return re.fullmatch(pattern.encode(), out) is not None


def words_of(call: str, *, key: str, name: str, folder: Path) -> list[str]:
    """The words of a call."""
    return [word.replace("KEY", key).replace("NAME", name).replace("FOLDER", str(folder)) for word in call.split()]
