"""All kinds of spec there are, and how a mapping becomes one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from engine.errors import SpecError
from engine.spec.ablation import AblationSpec
from engine.spec.base import Spec
from engine.spec.selftest import SelfTestSpec

AnySpec = AblationSpec | SelfTestSpec
"""The union of all kinds, told apart by `kind`."""

TaskSpec = AblationSpec
"""The kinds that a community can repeat: their rows can be cut into shards, and their effects are pooled over them."""

KINDS: dict[str, type[AnySpec]] = {"ablation": AblationSpec, "selftest": SelfTestSpec}

CUSTOM = "custom"
"""Kind of a run of somebody's own code, which is no spec."""

AnyKind = TypeVar("AnyKind", bound=Spec)
"""Whatever kind goes in comes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSpec:
    """A spec with what people call it. Name and description are not part of its identity.

    Attributes:
        notes: what a foreign format asked for that has no meaning here, one sentence each.
    """

    spec: AnySpec
    name: str = ""
    description: str = ""
    notes: tuple[str, ...] = ()


def parse_spec(values: Mapping[str, Any]) -> AnySpec:
    """The spec that a mapping describes.

    Raises:
        SpecError: the kind is unknown, or a field is missing, unknown or wrong; the text names it.
    """
    kind = values.get("kind")
    if kind == CUSTOM:
        raise SpecError(
            "kind 'custom' is a run of somebody's own code. It is local: no spec, so nobody can be asked to run it, and it cannot be sent.",
            next_step="Run the function itself again, in Python.",
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise SpecError(f"unknown kind of spec: {kind!r}; expected one of: {', '.join(KINDS)}.", next_step="Set 'kind'.")
    try:
        return KINDS[kind].model_validate(dict(values))
    except ValidationError as wrong:
        raise SpecError(explain(wrong), next_step="docs/methods.md lists the fields of every kind.") from wrong


def explain(wrong: ValidationError) -> str:
    """The first fault of a failed validation as one sentence: field, what it was, what was expected."""
    # A value that may have several shapes fails once for each; the deepest fault belongs to the shape that was meant.
    first = max(wrong.errors(include_url=False, include_context=False), key=lambda error: len(error["loc"]))
    place = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "the spec as a whole"
    text = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, Mapping) or first["type"] == "missing" else f" (it is {_short(given)})"
    more = f" {wrong.error_count() - 1} more fault(s) follow." if wrong.error_count() > 1 else ""
    return f"'{place}': {text}{shown}.{more}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
