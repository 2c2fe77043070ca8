"""Who may ask which table, and where that table's mailbox is.

Owns: the mapping of names to actors. A dictionary, not a task: a Request takes no hop here. Must not know any wire
format, nor touch a table's data.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kvsd.errors import KvsdError, TableNotFound
from kvsd.server.authentication import Principal
from kvsd.table.actor import TableActor
from kvsd.table.request import Mailbox


class TableName(NamedTuple):
    namespace: str
    table: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.table}"


DEFAULT_TABLE: Final = TableName("default", "default")


class Dispatcher:
    """A table that could not be opened keeps its place here, as the error that its requests are answered with."""

    def __init__(self) -> None:
        self._tables: dict[TableName, TableActor | KvsdError] = {}

    def add(self, name: TableName, table: TableActor | KvsdError) -> None:
        self._tables[name] = table

    def mailbox(self, principal: Principal, name: TableName) -> Mailbox | KvsdError:
        """The mailbox of `name`, or why `principal` gets none. Today every principal may use every table."""
        match self._tables.get(name):
            case None:
                return TableNotFound(f"no table {name}")
            case TableActor() as actor:
                return actor.mailbox
            case KvsdError() as error:
                return error

    @property
    def actors(self) -> list[TableActor]:
        return [table for table in self._tables.values() if isinstance(table, TableActor)]

    @property
    def unavailable(self) -> int:
        """How many tables could not be opened."""
        return len(self._tables) - len(self.actors)
