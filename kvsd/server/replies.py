"""What one connection is owed, in the order in which it asked.

Owns: the turns, Requests that were cut short, what is being written, and what all that keeps of the memory budget. Must
not know credentials, timers, or when the peer is read from.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, TypeAlias

from kvsd.errors import KvsdError
from kvsd.protocol.messages import encode_success
from kvsd.server.translation import encode_result
from kvsd.table.budget import Budget, out_of_memory
from kvsd.table.request import FREE_BYTES, Mailbox, Operation, Origin, Request

MAX_TURNS: Final = 4
"""Stretches of messages whose replies are outstanding; then nothing is taken from the peer until some have left."""

_OPERATION_BYTES: Final = 128
"""What an operation keeps in memory beside its value."""

_WRITE_BYTES: Final = 64 << 10
"""Handed to the transport at once. Behind TLS two such writes may lie unsent before it asks for a pause, so this bounds
what the budget does not see."""


class _Asked(Request):
    """A Request in its turn, with where it goes and what its operations keep of the budget until it is answered."""

    __slots__ = ("asked_bytes", "mailbox")

    mailbox: Mailbox
    asked_bytes: int


_Turn: TypeAlias = _Asked | bytearray
"""A bytearray is what is said without asking."""


class Replies:
    """Filled by `say` and `ask`, sent by `send`; `on_progress` is called when something may have become possible."""

    def __init__(self, budget: Budget, on_progress: Callable[[], None]) -> None:
        self.turns: deque[_Turn] = deque()
        self.is_paused = False
        """The peer does not take what is written."""
        self.is_due = False
        """Something was said that no `send` has looked at."""
        self.written_bytes = 0
        """Bytes that were ever handed out, sent or not."""
        self._said_bytes = 0
        """Bytes that wait for their turn and were said without asking a table."""
        self._said_held_bytes = 0
        self._budget = budget
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._origin = Origin(budget)
        self._transport: asyncio.Transport | None = None
        self._putting: asyncio.Task[None] | None = None
        self._unput: deque[_Asked] = deque()
        self._unsent = memoryview(b"")
        """What the transport has not taken yet."""
        self._unsent_held_bytes = 0
        self._rest_is_due = False
        """The first turn's Request was cut, and the part that came has been written."""

    @property
    def is_held_up(self) -> bool:
        """Whether nothing more should be asked before some replies have left."""
        return (
            self.is_paused
            or self._origin.is_cut
            or self._putting is not None
            or len(self.turns) >= MAX_TURNS
            or self._said_bytes > FREE_BYTES
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing is owed, and the peer has taken all."""
        return not self.turns and not self.is_paused

    @property
    def unsent_bytes(self) -> int:
        """Written, and not taken by the transport."""
        return len(self._unsent)

    def open(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def close(self) -> None:
        """The connection is gone: nobody waits any more. What was asked is done all the same."""
        self._transport = None
        self._on_progress = lambda: None  # ends the cycle with the session, which would keep its memory
        if self._putting is not None:
            self._putting.cancel()
        self._budget.release(self._unsent_held_bytes + self._said_held_bytes)
        for turn in self.turns:
            if isinstance(turn, bytearray):
                continue
            self._budget.release(turn.asked_bytes)
            if not turn.future.cancel():
                self._budget.release(turn.held_bytes)
        self.turns.clear()

    def say(self, reply: bytes) -> None:
        """Give `reply` its turn behind all that are owed; `send` sends it."""
        last = self.turns[-1] if self.turns else None
        if isinstance(last, bytearray):
            last += reply
        else:
            self.turns.append(bytearray(reply))
        self.is_due = True
        self._said_bytes += len(reply)
        if self._said_bytes > FREE_BYTES:
            self._said_held_bytes += len(reply)
            self._budget.take(len(reply))

    def fail(self, error: KvsdError, count: int = 1) -> None:
        """Say `error` to `count` requests."""
        self.say(encode_result(error) * count)

    def say_alone(self, reply: bytes) -> None:
        """Send `reply`, which may be long, at once; nothing else is owed."""
        held_bytes = len(reply) if len(reply) > FREE_BYTES else 0
        if self._transport is None or self._transport.is_closing():
            return
        if not self._budget.hold(held_bytes):
            reply, held_bytes = encode_result(out_of_memory()), 0
        self._write(self._transport, reply, held_bytes)

    def ask(self, mailbox: Mailbox, operations: Sequence[Operation], value_bytes: int) -> None:
        """Pass `operations`, which carry `value_bytes`, to a table as one Request; the results take their turn."""
        asked_bytes = _OPERATION_BYTES * len(operations) + value_bytes
        if asked_bytes <= FREE_BYTES:
            asked_bytes = 0
        elif not self._budget.hold(asked_bytes):
            self.fail(out_of_memory(), len(operations))
            return
        asked = self._request(operations, mailbox, asked_bytes)
        self.turns.append(asked)
        self._put(asked)

    def send(self, _: object = None) -> None:
        """Write all replies whose turn has come, with one write."""
        if self.is_paused or self._transport is None or self._transport.is_closing():
            return
        self.is_due = False
        turns = self.turns
        parts: list[bytes | bytearray] = []
        held_bytes = 0
        while turns:
            turn = turns[0]
            if isinstance(turn, bytearray):
                parts.append(turn)
                self._said_bytes -= len(turn)
                said_held_bytes = min(len(turn), self._said_held_bytes)
                self._said_held_bytes -= said_held_bytes
                held_bytes += said_held_bytes
            elif turn.future.done():
                results = turn.future.result()
                parts += [
                    encode_success(result) if result is None or type(result) is bytes else encode_result(result)
                    for result in results
                ]
                held_bytes += turn.held_bytes
                if len(results) < len(turn.operations):
                    turns[0] = self._request(turn.operations[len(results) :], turn.mailbox, turn.asked_bytes)
                    self._rest_is_due = True
                    break
                held_bytes += turn.asked_bytes
            else:
                break
            turns.popleft()
        if parts:
            self._write(self._transport, parts[0] if len(parts) == 1 else b"".join(parts), held_bytes)
        if self._rest_is_due:
            self._ask_again()
        self._on_progress()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        """The peer has taken all that the transport held."""
        self.is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._write_unsent(self._transport)
            self.send()

    def _request(self, operations: Sequence[Operation], mailbox: Mailbox, asked_bytes: int) -> _Asked:
        asked = _Asked(operations, self._origin, self._loop.create_future())
        asked.mailbox = mailbox
        asked.asked_bytes = asked_bytes
        return asked

    def _put(self, asked: _Asked) -> None:
        asked.future.add_done_callback(self.send)
        if self._putting is None:
            try:
                asked.mailbox.put_nowait(asked)
            except asyncio.QueueFull:
                self._putting = self._loop.create_task(self._put_waiting())
            else:
                return
        self._unput.append(asked)

    async def _put_waiting(self) -> None:
        """A mailbox is full: wait for room, while nothing is read from this peer."""
        while self._unput:
            asked = self._unput[0]
            await asked.mailbox.put(asked)
            self._unput.popleft()
        self._putting = None
        self._on_progress()

    def _write(self, transport: asyncio.Transport, reply: bytes | bytearray, held_bytes: int) -> None:
        self._unsent_held_bytes = held_bytes
        self.written_bytes += len(reply)
        if len(reply) <= _WRITE_BYTES:
            transport.write(reply)
        else:
            self._unsent = memoryview(reply)
        if held_bytes or self._unsent:
            self._write_unsent(transport)

    def _write_unsent(self, transport: asyncio.Transport) -> None:
        while self._unsent and not self.is_paused:
            piece, self._unsent = self._unsent[:_WRITE_BYTES], self._unsent[_WRITE_BYTES:]
            transport.write(piece)
        if self._unsent_held_bytes and not self.is_paused:
            self._budget.release(self._unsent_held_bytes)
            self._unsent_held_bytes = 0

    def _ask_again(self) -> None:
        """After a Request was cut: ask for the rest once what came has been written and all behind it is back."""
        if self.is_paused or not all(_is_back(turn) for turn in islice(self.turns, 1, None)):
            return
        self._rest_is_due = self._origin.is_cut = False
        for place, turn in enumerate(self.turns):
            if isinstance(turn, bytearray):
                continue
            if not turn.future.done():
                self._put(turn)
            elif not turn.results:
                self.turns[place] = anew = self._request(turn.operations, turn.mailbox, turn.asked_bytes)
                self._put(anew)


def _is_back(turn: _Turn) -> bool:
    return isinstance(turn, bytearray) or turn.future.done()
