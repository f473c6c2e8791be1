"""Which tokens of a prompt an edit changes, as data. Imports without torch.

Every rule speaks of tokens by their index in their own text: padding is not counted, and `last` is the last token of the prompt,
also while the model writes on. A rule looks at a token and at what came before it, never at what follows, so that a run with a
key-value cache, one without, and a padded one are edited alike.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from engine.values import Frozen

MAX_DEPTH = 20
"""Rules within rules, at most."""

TokenIndex = Annotated[int, Field(ge=-(2**31), lt=2**31)]
TokenIds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=10_000)]


class All(Frozen):
    """Every token."""

    at: Literal["all"] = "all"


class Index(Frozen):
    """Tokens by index; a negative one counts from the end of the prompt."""

    at: Literal["index"] = "index"
    index: Annotated[
        tuple[TokenIndex, ...], Field(min_length=1, max_length=10_000, description="Token indices; -1 is the prompt's last token.")
    ]


class Slice(Frozen):
    """Tokens from `start` up to, not including, `stop`; negative numbers count from the end of the prompt."""

    at: Literal["slice"] = "slice"
    start: Annotated[TokenIndex | None, Field(description="First token; the first of all when left out.")] = None
    stop: Annotated[TokenIndex | None, Field(description="Token after the last one; no end when left out.")] = None

    @model_validator(mode="after")
    def _not_empty(self) -> "Slice":
        start, stop = self.start or 0, self.stop
        if stop is not None and stop <= start and (stop < 0) == (start < 0):
            raise ValueError(f"the slice {start}:{stop} chooses no token at all; expected stop > start")
        return self


class Last(Frozen):
    """The last token of the prompt."""

    at: Literal["last"] = "last"


class Tokens(Frozen):
    """Tokens with one of these ids."""

    at: Literal["tokens"] = "tokens"
    ids: Annotated[TokenIds, Field(description="Token ids.")]


class AfterFirst(Frozen):
    """Every token behind the first one that has one of these ids."""

    at: Literal["after_first"] = "after_first"
    ids: Annotated[TokenIds, Field(description="Token ids.")]


class Prompt(Frozen):
    """Tokens of the prompt."""

    at: Literal["prompt"] = "prompt"


class Generated(Frozen):
    """Tokens that the model wrote."""

    at: Literal["generated"] = "generated"


class Special(Frozen):
    """The tokenizer's special tokens, such as the beginning of the text."""

    at: Literal["special"] = "special"


class And(Frozen):
    """Tokens that all of these rules choose."""

    at: Literal["and"] = "and"
    of: Annotated[tuple["Rule", ...], Field(min_length=1, max_length=100)]


class Or(Frozen):
    """Tokens that any of these rules chooses."""

    at: Literal["or"] = "or"
    of: Annotated[tuple["Rule", ...], Field(min_length=1, max_length=100)]


class Not(Frozen):
    """Tokens that this rule does not choose."""

    at: Literal["not"] = "not"
    of: "Rule"

    @model_validator(mode="after")
    def _not_everything(self) -> "Not":
        if isinstance(self.of, All):
            raise ValueError("not(all) chooses no token at all")
        return self


Rule = Annotated[
    All | Index | Slice | Last | Tokens | AfterFirst | Prompt | Generated | Special | And | Or | Not, Field(discriminator="at")
]
"""Any of the rules."""


def _shallow(value: Any) -> Any:
    """The value as it is, unless rules are nested too deeply to be worked through."""
    level, depth = [value], 0
    while level := [inner for rule in level for inner in _inner(rule)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"rules are nested more than {MAX_DEPTH} deep; write them with fewer 'and', 'or' and 'not' within each other")
    return value


def _inner(rule: Any) -> list[Any]:
    of = rule.get("of") if isinstance(rule, dict) else getattr(rule, "of", None) if isinstance(rule, BaseModel) else None
    return list(of) if isinstance(of, list | tuple) else [] if of is None else [of]


Positions = Annotated[Rule, BeforeValidator(_shallow)]
"""Any of the rules, not nested without end."""

for _rule in (And, Or, Not):
    _rule.model_rebuild()

EVERY = All()
"""The rule that chooses every token."""
