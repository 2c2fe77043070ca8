"""Names to mailboxes: an unknown table and one that could not be opened are told apart."""

from __future__ import annotations

import asyncio
from typing import cast

from kvsd.errors import CorruptLog, TableNotFound
from kvsd.server.authentication import Principal
from kvsd.server.dispatcher import DEFAULT_TABLE, Dispatcher, TableName
from kvsd.table.actor import TableActor

ANN = Principal("ann")


class Actor(TableActor):
    def __init__(self) -> None:
        self.mailbox = asyncio.Queue()


def test_a_table_is_found_by_its_whole_name() -> None:
    dispatcher, actor = Dispatcher(), Actor()
    dispatcher.add(DEFAULT_TABLE, actor)
    assert dispatcher.mailbox(ANN, TableName("default", "default")) is actor.mailbox
    unknown = dispatcher.mailbox(ANN, TableName("default", "other"))
    assert isinstance(unknown, TableNotFound)
    assert "default/other" in str(unknown)


def test_a_table_that_cannot_be_opened_is_counted_and_answers_with_the_reason() -> None:
    dispatcher, actor = Dispatcher(), Actor()
    dispatcher.add(DEFAULT_TABLE, actor)
    dispatcher.add(TableName("default", "bad"), reason := CorruptLog("damaged at 7"))
    assert dispatcher.mailbox(ANN, TableName("default", "bad")) is reason
    assert dispatcher.actors == [cast(TableActor, actor)]
    assert dispatcher.unavailable == 1
