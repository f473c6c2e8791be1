"""Edits: changes of a forward pass, as closed and serialisable data. Imports without torch.

An edit says where (a site), what (an operation with its value and strength), and at which tokens. What each operation makes of the
activation x, with u the value at length 1 and s the strength:

    zero         0                              set          the value
    mean         the reference prompts' mean    resample     what a reference prompt drawn by `seed` has there
    add          x + s * value                  norm_add     x + s * |x| * u
    scale        s * x                          project_out  x - (x . u) u
    orthogonal   x + (s - 1) (x . u) u          clamp        x + (s - x . u) u
    cap          x + (min(x . u, s) - x . u) u
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag, model_validator

from engine.hooks.positions import EVERY, All, Positions
from engine.hooks.sites import BY_HEAD, GROUPED, PAIRS, Site
from engine.values import Frozen, Sha256

Op = Literal["zero", "mean", "resample", "set", "add", "scale", "clamp", "project_out", "orthogonal", "cap", "norm_add"]

MAX_VALUES = 200_000
"""Numbers that an edit may hold itself; larger tensors are named by their hash."""


class Rule(NamedTuple):
    """What an operation needs.

    Attributes:
        value: whether it needs a value; `direction` for one that counts by its direction only.
        strength: strength when none is given; NaN where one must be given, None where the operation has none.
        neutral: strength at which it changes nothing; None where there is no such strength.
    """

    value: Literal["no", "yes", "direction"]
    strength: float | None
    neutral: float | None


RULES: dict[Op, Rule] = {
    "zero": Rule("no", None, None),
    "mean": Rule("no", None, None),
    "resample": Rule("no", None, None),
    "set": Rule("yes", None, None),
    "add": Rule("yes", 1.0, 0.0),
    "scale": Rule("no", math.nan, 1.0),
    "clamp": Rule("direction", math.nan, None),
    "project_out": Rule("direction", None, None),
    "orthogonal": Rule("direction", math.nan, 1.0),
    "cap": Rule("direction", math.nan, math.inf),
    "norm_add": Rule("direction", 1.0, 0.0),
}
PAIR_OPS: frozenset[Op] = frozenset({"zero", "set", "add", "scale"})
"""Operations that make sense for a number of its own, as in scores and patterns."""


class TensorRef(Frozen):
    """A tensor kept beside the edit, named by what is in it."""

    sha256: Annotated[Sha256, Field(description="Hash of dtype, shape and values.")]
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=4, description="Its shape.")]


def _plain(value: Any) -> Any:
    """Tensors and arrays as nested lists of numbers, of a size and shape that an edit may hold."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number; give a number, a vector or a table")
    if hasattr(value, "tolist"):
        _refuse_large(math.prod(value.shape))
        return value.tolist()
    if isinstance(value, list | tuple):
        rows = [row for row in value if isinstance(row, list | tuple)]
        _refuse_large(sum(map(len, rows)) if rows else len(value))
        if rows and (len(rows) < len(value) or len(set(map(len, rows))) > 1):
            raise ValueError(f"the rows of a value differ in length ({_lengths(value)}); give one vector of equal length per token")
    return value


def _refuse_large(numbers: int) -> None:
    if numbers > MAX_VALUES:
        raise ValueError(f"a value of {numbers} numbers is too large for an edit (at most {MAX_VALUES}); name it by a TensorRef")


def _lengths(value: Sequence[Any]) -> str:
    found = dict.fromkeys(len(row) if isinstance(row, list | tuple) else 1 for row in value)
    return ", ".join(map(str, list(found)[:5]))


def _kind(value: Any) -> str:
    """What a value is meant to be, so that what is wrong with it is said once."""
    if isinstance(value, TensorRef | dict):
        return "tensor"
    if isinstance(value, list | tuple):
        return "table" if value and isinstance(value[0], list | tuple) else "vector"
    return "number"


Number = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[tuple[Number, ...], Field(min_length=1, max_length=MAX_VALUES, fail_fast=True)]
Table = Annotated[tuple[Vector, ...], Field(min_length=1, max_length=MAX_VALUES, fail_fast=True)]
Value = Annotated[
    Annotated[Number, Tag("number")]
    | Annotated[Vector, Tag("vector")]
    | Annotated[Table, Tag("table")]
    | Annotated[TensorRef, Tag("tensor")],
    Discriminator(_kind),
    BeforeValidator(_plain),
]
"""One number, a vector as wide as the site, a table of one vector per token index, or the name of a tensor."""
Strength = Annotated[
    float,
    Field(allow_inf_nan=True),
    PlainSerializer(lambda value: value if math.isfinite(value) else str(value), when_used="json"),  # JSON has no infinity
]


class When(Frozen):
    """A condition, asked at each token: is the activation's product with a direction above (or below) a threshold?"""

    feature: Annotated[Value, Field(description="The direction; a vector as wide as the site.")]
    site: Annotated[Site | None, Field(description="Where the activation is read; the edit's own site when left out.")] = None
    relation: Annotated[Literal[">", "<"], Field(description="On which side of the threshold the edit happens.")] = ">"
    threshold: Annotated[Number, Field(description="In the activation's unit.")] = 0.0

    @model_validator(mode="after")
    def _one_number(self) -> "When":
        if self.site is not None:
            _refuse_several(self.site)
        return self


def _refuse_several(site: Site) -> None:
    """Refuses a site where a token has no single vector that could be multiplied with a direction."""
    if site.name in PAIRS | GROUPED:
        raise ValueError(f"a condition asks about one token's vector, and site '{site.name}' has none; ask at another site, such as 'z'")
    if site.name in BY_HEAD and site.head is None:
        raise ValueError(f"a condition asks about one vector, and site '{site.name}' has one for each head; say which head")


class Edit(Frozen):
    """One change of a forward pass: site, operation, value, and the tokens that are changed."""

    site: Annotated[Site, Field(description="Where; a hook name such as 'blocks.3.hook_resid_post' is understood as well.")]
    op: Annotated[Op, Field(description="What is done.")]
    value: Annotated[Value | None, Field(description="What it is done with, for operations that need something.")] = None
    strength: Annotated[Strength | None, Field(description="How much; the operation's own default when left out.")] = None
    positions: Annotated[Positions, Field(description="Tokens that are changed.")] = EVERY
    keys: Annotated[Positions, Field(description="Key tokens that are changed, for scores and pattern.")] = EVERY
    when: Annotated[When | None, Field(description="Condition at each token; always when left out.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of the draw of 'resample'.")] = 0

    @model_validator(mode="after")
    def _complete(self) -> "Edit":
        self._check_value()
        self._check_strength()
        if self.seed and self.op != "resample":
            raise ValueError(f"op '{self.op}' draws nothing, so 'seed' has no meaning; leave it out")
        if not isinstance(self.keys, All) and self.site.name not in PAIRS:
            raise ValueError(f"site '{self.site.name}' has no key tokens; leave 'keys' out, or choose 'scores' or 'pattern'")
        if self.when is not None and self.site.name in PAIRS | GROUPED:
            raise ValueError(f"a condition belongs to one token, and site '{self.site.name}' has several; leave 'when' out")
        if self.when is not None and self.when.site is None:
            _refuse_several(self.site)
        return self

    def _check_value(self) -> None:
        rule = RULES[self.op]
        if rule.value == "no" and self.value is not None:
            raise ValueError(f"op '{self.op}' takes no value; leave 'value' out")
        if rule.value != "no" and self.value is None:
            raise ValueError(
                f"op '{self.op}' needs a 'value'; give {'a direction' if rule.value == 'direction' else 'a number or a vector'}"
            )
        if rule.value == "direction" and self.site.unit is None and self._is_number:
            raise ValueError(f"op '{self.op}' needs a direction: a vector as wide as the site (value is {self.value})")
        if self.site.name in PAIRS and self.op not in PAIR_OPS:
            raise ValueError(f"op '{self.op}' has no meaning at site '{self.site.name}'; expected one of: {', '.join(sorted(PAIR_OPS))}")
        if self.site.name in PAIRS and self.value is not None and not self._is_number:
            raise ValueError(
                f"site '{self.site.name}' has one number for each pair of tokens; give a number, and choose pairs by 'positions' and 'keys'"
            )

    @property
    def _is_number(self) -> bool:
        return isinstance(self.value, int | float) or (isinstance(self.value, TensorRef) and not self.value.shape)

    def _check_strength(self) -> None:
        rule = RULES[self.op]
        if rule.strength is None and self.strength is not None:
            raise ValueError(f"op '{self.op}' has no strength; leave 'strength' out")
        if rule.strength is not None and self.strength is None and math.isnan(rule.strength):
            raise ValueError(f"op '{self.op}' needs a 'strength'; give a number")
        if self.strength is not None and not math.isfinite(self.strength) and self.strength != rule.neutral:
            raise ValueError(f"strength {self.strength} is not a finite number; op '{self.op}' needs one")

    @property
    def amount(self) -> float:
        """The strength, or the operation's own where none was given; 1 where it has none."""
        default = RULES[self.op].strength
        return self.strength if self.strength is not None else 1.0 if default is None else default

    @property
    def neutral(self) -> bool:
        """Whether the edit changes nothing whatever the activation is; then nothing is hooked into the model for it."""
        return self.amount == RULES[self.op].neutral

    def at_strength(self, strength: float) -> "Edit":
        """The same edit with another strength."""
        return Edit.model_validate({**self.model_dump(), "strength": strength})


def read_edits(values: Sequence[Any]) -> tuple[Edit, ...]:
    """The edits that a list of mappings (as from JSON) describes; edits pass through.

    Raises:
        pydantic.ValidationError: one of them is wrong.
    """
    return tuple(value if isinstance(value, Edit) else Edit.model_validate(value) for value in values)
