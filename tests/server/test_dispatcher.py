"""Names to mailboxes: a table is found by its whole name, and one that is gone is not found."""

from __future__ import annotations

import asyncio

from kvsd.errors import TableNotFound
from kvsd.server.authentication import Principal
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table.request import Mailbox

ANN = Principal("ann")


def test_a_table_is_found_by_its_whole_name() -> None:
    dispatcher = Dispatcher()
    mailbox: Mailbox = asyncio.Queue()
    dispatcher.add(DEFAULT_TABLE, mailbox)
    assert dispatcher.mailbox(ANN, TableName("default", "default")) is mailbox
    unknown = dispatcher.mailbox(ANN, TableName("default", "other"))
    assert isinstance(unknown, TableNotFound)
    assert "default/other" in str(unknown)


def test_a_table_that_was_dropped_is_not_found() -> None:
    dispatcher = Dispatcher()
    dispatcher.add(DEFAULT_TABLE, asyncio.Queue())
    dispatcher.remove(DEFAULT_TABLE)
    assert isinstance(dispatcher.mailbox(ANN, DEFAULT_TABLE), TableNotFound)
