"""Bytes captured from the Rust program, and the worked bytes of the documentation, in both directions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvsd.protocol import messages
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.frames import Time
from kvsd.protocol.messages import Authenticate, Delete, Fail, Get, Hello, Message, Ping, Set, Success, encode

TESTS = Path(__file__).parents[1]
ROWS: list[dict[str, Any]] = json.loads((TESTS / "data" / "wire-vectors.json").read_text())
BLOCKS = re.findall(r"```hex\n# (\w+).*\n((?:.+\n)+?)```", (TESTS.parent / "docs" / "wire-format.md").read_text())


def decode(data: bytes) -> list[Message]:
    decoder, found = Decoder(), []
    decoder.feed(data)
    while (message := decoder.next_message()) is not None:
        found.append(message)
    assert decoder.buffered_bytes == 0
    return found


def meant(row: dict[str, Any]) -> list[Message]:
    """The messages that the row says its bytes mean; captured times are taken from the bytes."""
    meaning = row["meaning"]
    times = [Time.parse(text) for text in re.findall(rb"T(\d[^\r]+)\r\n", bytes.fromhex(row["hex"]))]
    match meaning["type"]:
        case "Authenticate":
            return [Authenticate(meaning["username"], meaning["password"])]
        case "Set":
            return [Set(meaning["key"].encode(), bytes.fromhex(meaning["value_hex"]))]
        case "Get":
            return [Get(meaning["key"].encode())]
        case "Delete":
            return [Delete(meaning["key"].encode())]
        case "Fail":
            return [Fail(meaning["code"], meaning["message"])]
        case "Success":
            return [Success(bytes.fromhex(meaning["value_hex"]) if "value_hex" in meaning else None)]
        case "Ping":
            names = ("client_time", "server_time")
            return [Ping(*(times.pop(0) if meaning[name] is not None else None for name in names))]
        case "Hello":
            return [Hello(meaning["version"], tuple(meaning["features"]))]
        case "three messages":
            return [Success(None), Success(b"1"), Success(b"1")]
        case other:
            raise AssertionError(f"a row of a kind that this test does not know: {other}")


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_captured_bytes_mean_what_the_rust_program_meant(row: dict[str, Any]) -> None:
    assert decode(bytes.fromhex(row["hex"])) == meant(row)


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_our_bytes_are_those_that_the_rust_program_writes(row: dict[str, Any]) -> None:
    assert b"".join(map(encode, meant(row))) == bytes.fromhex(row["hex"])


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_the_captured_text_and_hex_agree(row: dict[str, Any]) -> None:
    # The four characters \xff in the text stand for one byte, which JSON cannot hold.
    assert row["text"].encode().replace(b"\\xff", b"\xff") == bytes.fromhex(row["hex"])


@pytest.mark.parametrize(("name", "lines"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_the_worked_bytes_of_the_documentation_are_true(name: str, lines: str) -> None:
    encoded = b"".join(bytes.fromhex(re.split(r"  +", line)[0]) for line in lines.splitlines())
    [message] = decode(encoded)
    assert type(message).__name__ == name
    assert encode(message) == encoded


def test_every_message_type_has_worked_bytes_in_the_documentation() -> None:
    assert {name.upper() for name, _ in BLOCKS} >= set(messages.MessageType.__members__)
