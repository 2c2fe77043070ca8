"""`kvsd config`: which settings hold, and where they come from."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kvsd.cli.app import ConfigOption, JsonOption, new_group
from kvsd.cli.output import Output, for_json, on_terminal, path_text, print_table
from kvsd.cli.settings import load_settings
from kvsd.config import SETTINGS, USERS, Config

app = new_group("Show and check the configuration.")


class _Row(NamedTuple):
    name: str
    value: str
    origin: str


@app.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every setting, its value, and where that comes from; secrets are hidden.

    A pipe gets a line for each setting, with tabs between name, value and origin.

    \b
    Examples:
      kvsd config show
      kvsd config show | grep tls
      kvsd config show --json
    """
    output = Output(as_json=json)
    settings = load_settings(config, output)
    if json:
        output.document({row.name: {"value": row.value, "origin": row.origin} for row in _rows(settings)})
    elif on_terminal():
        print_table(["setting", "value", "from"], _in_sections(_rows(settings)))
    else:
        for row in _rows(settings):
            output.line(*row)


@app.command()
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check all that a server would refuse to start with; prints OK, or what is wrong and where.

    That is the config file and the environment, and the certificates, passwords, folders and addresses that they name.
    Nothing is changed. What a start would only warn of is a warning here.

    \b
    Examples:
      kvsd config check
      kvsd config check --config new.yaml
    """
    output = Output(as_json=json)
    settings = load_settings(config, output, file_required=True)
    file = settings.path
    assert file is not None  # required
    # Imported here: it brings the server along.
    from kvsd.server import dry_run

    if _is_for_clients_alone(settings):
        output.note("it has settings for clients alone; no server could start with it")
    else:
        for warning in dry_run.check(settings):
            output.warning(warning)
    if json:
        output.document({"file": for_json(os.fsencode(file)), "status": "OK"})
    else:
        output.line(f"OK {path_text(file)}")


def _is_for_clients_alone(config: Config) -> bool:
    """Tell whether nothing but what clients need is set, as on a machine without a server."""
    return {name.partition(".")[0] for name, origin in config.origins.items() if origin != "default"} == {"client"}


def _rows(config: Config) -> Iterator[_Row]:
    for name, setting in SETTINGS.items():
        value = config.value(name)
        yield _Row(name, setting.shown(path_text(value) if isinstance(value, Path) else value), config.origins[name])
    users = ", ".join(user.username for user in config.storage.users) or "(none)"
    yield _Row(USERS, users, config.origins[USERS])


def _in_sections(rows: Iterable[_Row]) -> Iterator[Sequence[str]]:
    """The rows by their short names, below a heading for each section."""
    for section, members in groupby(rows, lambda row: row.name.partition(".")[0]):
        yield [section]
        for row in members:
            yield f"  {row.name.partition('.')[2]}", row.value, row.origin
