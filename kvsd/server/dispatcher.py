"""Who may ask which table, and where that table's mailbox is.

Owns: the mapping of names to mailboxes. A dictionary, not a task: a Request takes no hop here. Must not know any wire
format, nor touch a table's data.
"""

from __future__ import annotations

from kvsd.errors import KvsdError, TableNotFound
from kvsd.server.authentication import Principal
from kvsd.server.names import TableName
from kvsd.table.request import Mailbox


class Dispatcher:
    """Every table that exists has its mailbox here, whether it is open or not: what is put there is answered."""

    def __init__(self) -> None:
        self._mailboxes: dict[TableName, Mailbox] = {}

    def add(self, name: TableName, mailbox: Mailbox) -> None:
        self._mailboxes[name] = mailbox

    def remove(self, name: TableName) -> None:
        del self._mailboxes[name]

    def mailbox(self, principal: Principal, name: TableName) -> Mailbox | KvsdError:
        """The mailbox of `name`, or why `principal` gets none. Today every principal may use every table."""
        mailbox = self._mailboxes.get(name)
        return TableNotFound(f"no table {name}") if mailbox is None else mailbox
