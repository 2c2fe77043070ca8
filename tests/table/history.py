"""What a table may hold after a crash: the states that its writes made, and which of them were acknowledged."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.table.driver import Table
from tests.table.medium import FaultyMedium


class History:
    """Drives a Table and remembers. A crash must leave the state after some write: never one before the last
    acknowledged one, and none that was not reached."""

    def __init__(self, medium: FaultyMedium, **options: Any) -> None:
        self.medium = medium
        self.options = options
        self.states: list[dict[bytes, bytes]] = [{}]
        self.acknowledged: list[tuple[int, int]] = [(0, 0)]
        """Recorded operations so far, and the index of the state that was acknowledged then."""
        self.table = self.open()

    def open(self) -> Table:
        return Table(self.medium, self.medium.root, **self.options)

    def put(self, key: bytes, value: bytes) -> None:
        self.table.set(key, value)
        self.states.append(self.states[-1] | {key: value})

    def remove(self, key: bytes) -> None:
        self.table.delete(key)
        self.states.append({k: v for k, v in self.states[-1].items() if k != key})

    def commit(self) -> None:
        self.table.commit()
        self.acknowledge()

    def acknowledge(self) -> None:
        self.acknowledged.append((len(self.medium.operations), len(self.states) - 1))

    def allowed(self, operations: int) -> list[dict[bytes, bytes]]:
        """The states that a crash after so many operations may leave."""
        first, last = 0, len(self.states) - 1
        for count, index in self.acknowledged:
            if count <= operations:
                first = index
            else:
                last = index
                break
        return self.states[first : last + 1]


def busy_minute(history: History, *, rounds: int = 4, seed: int = 1, hints: bool = False) -> None:
    """Groups of writes with rolls and fills; runs that end with a SEAL, without one, and at once."""
    rng = random.Random(seed)
    for turn in range(rounds):
        for _ in range(rng.randint(0, 5)):
            for _ in range(rng.randint(1, 3)):
                key = b"key-%d" % rng.randrange(4)
                if key in history.states[-1] and rng.random() < 0.25:
                    history.remove(key)
                else:
                    history.put(key, rng.randbytes(rng.randrange(400)))
            history.commit()
            if rng.random() < 0.5:
                history.table.fill()
            if hints:
                history.table.write_hints()
        if turn % 2:
            history.table.stop()
        else:
            history.table.kill()
        history.table = history.open()
    history.table.kill()


def recovered(medium: FaultyMedium, root: Path | None = None, **options: Any) -> dict[bytes, bytes]:
    """What a healthy start finds; nothing of it may leak."""
    table = Table(medium, root or medium.root, **options)
    items = table.items()
    table.kill()
    assert not medium.open_files
    return items
