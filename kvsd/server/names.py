"""What a table is called: its namespace, and its name in there.

Owns: the whole name, and what a part that is left out stands for. Must not know which tables there are.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class TableName(NamedTuple):
    namespace: str
    table: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.table}"

    def resolve(self, namespace: str | None, table: str | None) -> TableName:
        """The table that a message names in a session whose table is this one; what is None is the session's."""
        return TableName(self.namespace if namespace is None else namespace, self.table if table is None else table)


DEFAULT_TABLE: Final = TableName("default", "default")
