from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.config.document import Items, Keys, Scalar, parse
from kvsd.errors import ConfigError


def refusal(text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(ConfigError) as raised:
        parse(data, "c.yaml")
    return str(raised.value)


def test_values_stay_text_as_written_and_know_their_lines() -> None:
    text = "a:\n  b: 0123  # octal to YAML\n  c: yes\n  d:\n    'quoted: text'\nl: [x, {k: 1_0}]\n"
    assert parse(text.encode(), "c.yaml") == Keys(
        1,
        {
            "a": Keys(1, {"b": Scalar(2, "0123"), "c": Scalar(3, "yes"), "d": Scalar(4, "quoted: text")}),
            "l": Items(6, (Scalar(6, "x"), Keys(6, {"k": Scalar(6, "1_0")}))),
        },
    )


@pytest.mark.parametrize("written", ["", "~", "null", "Null", "NULL"])
def test_nothing_is_not_the_text_of_nothing(written: str) -> None:
    assert parse(f"a: {written}".encode(), "c.yaml").nodes["a"] == Scalar(1, None)


@pytest.mark.parametrize("written", ["''", '"null"', "'~'"])
def test_a_quoted_value_is_never_nothing(written: str) -> None:
    assert parse(f"a: {written}".encode(), "c.yaml").nodes["a"] == Scalar(1, written[1:-1])


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "--- ~\n", "\ufeff"])
def test_an_empty_file_has_no_keys(text: str) -> None:
    assert parse(text.encode(), "c.yaml").nodes == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert list(parse("\ufeffa: 1".encode(), "c.yaml").nodes) == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "c.yaml:3: a is given twice, first in line 1"),
        ("a:\n  b: 1\n\n  b: 2\n", "c.yaml:4: a.b is given twice, first in line 2"),
        ("l:\n- {k: 1, k: 2}\n", "c.yaml:2: l[0].k is given twice, first in line 2"),
        ("\n- a\n", "c.yaml:2: the file must hold sections"),
        ("just text", "c.yaml:1: the file must hold sections"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: a second document starts here"),
        ("a: 1\n b: 2\n", "c.yaml:2: the file is no valid YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "c.yaml:2: the file is no valid YAML: found character '\\t'"),
        ("a: [1,\n", "c.yaml:2: the file is no valid YAML"),
        ("a: 'never closed\n", "c.yaml:2: the file is no valid YAML"),
        ("a: 1\nb: \0\n", "c.yaml:2: the file holds a control character"),
        (b"a: 1\nb: \xff\n", "c.yaml:2: the file is not UTF-8 text"),
        ('a: "\\ud800"', "c.yaml:1: a holds an escape that is no character"),
        ('a: "\\UFFFFFFFF"', "c.yaml:1: the file holds an escape or a number"),
        ("? [a]\n: b\n", "c.yaml:1: the file holds a key that is no name"),
        ("a:\n  <<: {}\n", "c.yaml:2: a holds a key that is no name"),
        ("a: &x 1\n", "c.yaml:1: a begins with &, * or !"),
        ("a: {}\nb: *a\n", "c.yaml:2: b begins with &, * or !"),
        ("a: !!python/object/apply:os.system [ls]\n", "c.yaml:1: a begins with &, * or !"),
        ("a: !x 1\n", "c.yaml:1: a begins with &, * or !"),
    ],
)
def test_what_a_config_file_cannot_be_is_refused_with_its_line(text: str | bytes, message: str) -> None:
    assert refusal(text).startswith(message)


def test_aliases_cannot_blow_up_the_memory() -> None:
    laughs = ["a0: &a0 [lol, lol]"]
    laughs += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert "a0 begins with &" in refusal("\n".join(laughs))


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_before_it_costs_anything(bracket: str) -> None:
    assert "is nested too deeply" in refusal("a:\n  " + bracket * 100_000)


@pytest.mark.parametrize(
    "text",
    [
        "client: {password:hunter2}",
        "client:\n  password: *hunter2\n",
        "client:\n  password: &hunter2\n",
        "client:\n  password: !hunter2\n",
        "client:\n  password: !hunter2!x\n",
        "client:\n  password: @hunter2\n",
        "client:\n  password: %hunter2\n",
        "client:\n  password: hunter2: x\n",
        "client:\n  password: 'hunter2\n",
        "client:\n  password: [hunter2\n",
        'client:\n  password: "hunter2\\q"\n',
        "%TAG !hunter2! a\n%TAG !hunter2! a\n---\n",
    ],
)
def test_a_badly_quoted_password_is_not_repeated_in_the_message(text: str) -> None:
    assert "hunter2" not in refusal(text)


@given(st.one_of(st.binary(), st.text(alphabet="ab:-[]{}&*!|>'\"%@`#?,~<\\ \n\tx0U\ufeff", max_size=60)))
def test_any_bytes_give_keys_or_a_config_error(data: bytes | str) -> None:
    try:
        keys = parse(data if isinstance(data, bytes) else data.encode(), "c.yaml")
    except ConfigError:
        return
    assert isinstance(keys, Keys)
