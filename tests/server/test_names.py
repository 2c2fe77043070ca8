"""Whole names of tables: what stands for a part that is left out."""

from __future__ import annotations

from kvsd.server.names import TableName


def test_what_a_message_leaves_out_is_the_sessions_and_an_empty_name_is_not_left_out() -> None:
    here = TableName("shop", "stock")
    assert here.resolve(None, None) == here
    assert here.resolve(None, "orders") == TableName("shop", "orders")
    assert here.resolve("", "") == TableName("", "")
