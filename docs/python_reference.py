"""Write the reference in docs/python.md anew, from the docstrings of the public classes.

    python docs/python_reference.py

`tests/test_docs.py` holds the page to what this writes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Final

import kvsd
import kvsd.aio
from kvsd.client.batch import Batch
from kvsd.client.sync_table import Table
from kvsd.client.sync_tables import Namespaces, Tables

PAGE: Final = Path(__file__).with_name("python.md")
BEGIN: Final = "<!-- reference: written by docs/python_reference.py -->\n"
END: Final = "<!-- end of reference -->\n"

CLASSES: Final = {
    "Client": (kvsd.Client, "What `kvsd.connect` gives. It has all that a table has, for the client's own table, and:"),
    "Table": (Table, "What `db.table(…)` gives, and what a client is itself."),
    "Batch": (Batch, "What `with db.batch() as batch:` gives."),
    "Tables": (Tables, "What `db.tables` gives."),
    "Namespaces": (Namespaces, "What `db.namespaces` gives."),
}
HIDDEN: Final = {"run", "run_all"}
"""Methods by which the shells share one core. They are no use without it."""


def reference() -> str:
    """Return the reference as Markdown."""
    parts = [f"### `kvsd.connect{_signature(kvsd.connect)}`\n", _doc(kvsd.connect)]
    for name, (cls, place) in CLASSES.items():
        parts += [f"### {name}\n", f"{place}\n", _doc(cls)]
        parts += [entry for attribute, member in vars(cls).items() for entry in _member(attribute, member)]
    parts += ["### Entry\n", _doc(kvsd.Entry), *_fields(kvsd.Entry), "### Errors\n", _errors()]
    return "\n".join(parts)


def current(page: str) -> str:
    """Return `page` with the reference as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + reference() + "\n" + END + after


def _member(name: str, member: object) -> list[str]:
    if name.startswith("_") or name in HIDDEN:
        return []
    if isinstance(member, property):
        return [f"**`{name}`**\n", _doc(member)]
    if inspect.isfunction(member):
        return [f"**`{name}{_signature(member)}`**\n", _doc(member)]
    return []


def _signature(function: object) -> str:
    """Return the parameters but `self`, with their defaults, and the type of what comes back."""
    assert callable(function)
    signature = inspect.signature(function)
    shown = []
    keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            shown.append("*")
            keyword_only = True
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{prefix}{parameter.name}{default}")
    returned = signature.return_annotation
    return f"({', '.join(shown)})" + ("" if returned in ("None", signature.empty) else f" → {returned}")


def _fields(cls: type) -> list[str]:
    return [f"- `{name}: {kind}`" for name, kind in inspect.get_annotations(cls).items()] + [""]


def _doc(thing: object) -> str:
    return (inspect.getdoc(thing) or "") + "\n"


def _errors() -> str:
    rows = ["| class | base | code | tried again | when |", "| --- | --- | --- | --- | --- |"]
    for name in kvsd.__all__:
        cls = getattr(kvsd, name)
        if isinstance(cls, type) and issubclass(cls, kvsd.KvsdError):
            bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
            first = " ".join(_doc(cls).partition("\n\n")[0].split())
            again = "yes" if cls.retryable else ""
            rows.append(f"| `{name}` | {bases} | {cls.code} | {again} | {first} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text("utf-8")), "utf-8")
