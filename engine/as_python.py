"""A run as a short script that does it again: "Copy as Python". Imports without torch.

Whatever people typed (names, ids, paths) goes into the script as a Python literal and nowhere else, so it stays a value.
"""

from collections.abc import Mapping
from typing import Any

from engine.custom import Asked, CustomCall

INDENT = "    "
WIDTH = 100


def as_python(asked: Asked, *, name: str = "") -> str:
    """The script of a run: what was asked, written out, run again, and its numbers as a table.

    For a run of somebody's own code it shows how the function was called; the function itself is for the reader to bring.
    """
    return _of_call(asked) if isinstance(asked, CustomCall) else _of_spec(asked, name)


def literal(value: Any, indent: str = "") -> str:
    """A value out of JSON as a Python literal, over several lines where one would be long."""
    flat = repr(value)  # escapes quotes, backslashes, and whatever cannot be printed
    if not isinstance(value, dict | list | tuple) or not value or len(indent) + len(flat) <= WIDTH:
        return flat
    deeper = indent + INDENT
    if isinstance(value, dict):
        parts = [f"{key!r}: {literal(one, deeper)}" for key, one in value.items()]
        return "{\n" + "".join(f"{deeper}{part},\n" for part in parts) + indent + "}"
    parts = [literal(one, deeper) for one in value]
    return "[\n" + "".join(f"{deeper}{part},\n" for part in parts) + indent + "]"


def _of_spec(spec: Any, name: str) -> str:
    values = {"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)}
    called = f", name={literal(name)}" if name else ""
    return f"import philab\n\nspec = {literal(values)}\nfinished = philab.run(spec{called})\nprint(finished.to_pandas())\n"


def _of_call(call: CustomCall) -> str:
    model = call.model.model_dump(mode="json", exclude_defaults=True, exclude={"id"})
    return (
        "import philab\n\n"
        "# The experiment itself is its author's: read its source first, and bring it yourself.\n"
        f"from experiments import {call.name}\n\n"
        f"model = philab.load_model({literal(call.model.id)}{_keywords(model)})\n"
        f"finished = {call.name}.run(model{_keywords(call.parameters)})\n"
        "print(finished.to_pandas())\n"
    )


def _keywords(values: Mapping[str, Any]) -> str:
    """Further arguments of a call; their names are checked to be names where calls are read."""
    return "".join(f", {name}={literal(value)}" for name, value in values.items())
