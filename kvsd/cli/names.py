"""How a shell names a table: TABLE, or NAMESPACE/TABLE.

Owns: that argument, and taking it apart. Knows no command.
"""

from typing import Annotated, TypeAlias

import typer

from kvsd.cli.failures import UsageError
from kvsd.types import NAME

TableArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="TABLE", help="NAMESPACE/TABLE, or TABLE in the namespace that is in use.")
]


def parted(name: str) -> tuple[str | None, str]:
    """NAMESPACE/TABLE, or TABLE with None for its namespace; raises UsageError for what is neither."""
    namespace, slash, table = name.rpartition("/")
    if not NAME.fullmatch(table) or (slash and not NAME.fullmatch(namespace)):
        raise UsageError(f"{name!r} names no table: write TABLE or NAMESPACE/TABLE, each of a-z, 0-9, _ and -")
    return namespace if slash else None, table
