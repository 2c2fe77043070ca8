from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvsd.config import values
from kvsd.config.values import GIB, KIB, MIB
from kvsd.types import Fsync

whole = values.whole(1, 65_535)
seconds = values.seconds(0, 60)
size = values.size(0, 2 * GIB)
fsync = values.choice(Fsync, {"sometimes": Fsync.INTERVAL})


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (whole, "1", 1),
        (whole, " 65_535 ", 65_535),
        (seconds, "0", 0.0),
        (seconds, "2.5", 2.5),
        (size, "0", 0),
        (size, "4096", 4096),
        (size, "64KiB", 64 * KIB),
        (size, "128 MiB", 128 * MIB),
        (size, "2 gib", 2 * GIB),
        (values.switch, "1", True),
        (values.switch, "TRUE", True),
        (values.switch, "Yes", True),
        (values.switch, "on", True),
        (values.switch, "0", False),
        (values.switch, "false", False),
        (values.switch, "no", False),
        (values.switch, "OFF", False),
        (fsync, "Always", Fsync.ALWAYS),
        (fsync, "sometimes", Fsync.INTERVAL),
        (values.path, "a/b", Path("a/b")),
        (values.path, "~/b", Path.home() / "b"),
        (values.host, "localhost", "localhost"),
        (values.host, "::1", "::1"),
        (values.host, "[fe80::1%eth0]", "fe80::1%eth0"),
        (values.name, "user one", "user one"),
        (values.secret, "", ""),
        (values.secret, " as it is ", " as it is "),
        (values.password_hash, "$argon2id$v=19$…", "$argon2id$v=19$…"),
    ],
)
def test_a_text_becomes_its_value(parse: Callable[[str], object], text: str, value: object) -> None:
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *(
            (whole, text)
            for text in ("", "0", "65536", "-1", "+1", "1.0", "0x10", "1e3", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5_000)
        ),
        *((seconds, text) for text in ("", "-1", "61", "nan", "inf", "5s")),
        *((size, text) for text in ("", "-1", "3 GiB", "1.5 MiB", "64 KB", "MiB", "9" * 18 + "GiB")),
        *((values.switch, text) for text in ("", "2", "y", "enabled")),
        *((fsync, text) for text in ("", "often")),
        *((values.path, text) for text in ("", "a\0b", "~nobody-has-this-name/x")),
        *((values.host, text) for text in ("", "a b", "a:1", "a/b", "[a]", "a@b", "a\nb", "a" * 256)),
        *((values.name, text) for text in ("", "a\nb", "a\rb")),
        *((values.secret, text) for text in ("hunter2\n", "\rhunter2")),
        *((values.password_hash, text) for text in ("", "hunter2", "$argon2i$v=19$x", "$2b$12$x")),
    ],
)
def test_what_is_no_value_is_refused_without_quoting_it(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be ") as raised:
        parse(text)
    assert len(text) < 2 or text not in str(raised.value) or text == "MiB"
