"""`kvsd restored`: tell a data folder that it was restored from a copy."""

from pathlib import Path
from typing import Annotated

import typer

from kvsd.cli.app import ConfigOption, JsonOption, new_command
from kvsd.cli.output import Json, Output
from kvsd.cli.settings import load_settings
from kvsd.errors import KvsdError

app = new_command()


@app.command("restored")
def restored(
    root: Annotated[
        Path | None,
        typer.Argument(metavar="[ROOT]", help="The data folder; by default kvsd.root_dir. Its server must be stopped."),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Say that a data folder, or a table in it, was restored from a copy.

    Versions that the server gave after the copy was made may still be remembered by clients. So a gap is left in the
    numbers of every table: no version is given twice, and none that is remembered matches by chance. What is there is
    taken as it is, also where it is older than the catalog knows or was another table's. Damage is still refused.

    \b
    Examples:
      kvsd restored
      kvsd restored /var/lib/kvsd/data
    """
    # Imported here: the help needs none of it.
    from kvsd.server import offline

    output = Output(as_json=json)
    if root is None:
        root = load_settings(config, output).storage.root_dir
    failures: list[KvsdError] = []
    found: list[Json] = []
    for table in offline.restored(root):
        if table.error is not None:
            failures.append(table.error)
            output.warning(f"table {table.name} stays as it is: {table.error}")
            continue
        found.append({"table": str(table.name), "version": table.last_seq, "was_another": table.was_another})
        if table.was_another:
            output.warning(f"table {table.name} has the files of another table, or of an older one of its name")
        if not json:
            output.line(f"OK {table.name}: versions go on above {table.last_seq}")
    if json:
        output.document({"restored": found})
    if failures:
        raise failures[0]
