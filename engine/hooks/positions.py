"""Which tokens of a prompt an edit changes, as data. Imports without torch.

Every rule speaks of tokens by their index in their own text: padding is not counted, and `last` is the last token of the prompt,
also while the model writes on. A rule looks at a token and at what came before it, never at what follows, so that a run with a
key-value cache, one without, and a padded one are edited alike.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.values import Frozen

TokenIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=10_000)]


class All(Frozen):
    """Every token."""

    at: Literal["all"] = "all"


class Index(Frozen):
    """Tokens by index; a negative one counts from the end of the prompt."""

    at: Literal["index"] = "index"
    index: Annotated[tuple[int, ...], Field(min_length=1, max_length=10_000, description="Token indices; -1 is the prompt's last token.")]


class Slice(Frozen):
    """Tokens from `start` up to, not including, `stop`; negative numbers count from the end of the prompt."""

    at: Literal["slice"] = "slice"
    start: Annotated[int | None, Field(description="First token; the first of all when left out.")] = None
    stop: Annotated[int | None, Field(description="Token after the last one; no end when left out.")] = None


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
    of: Annotated[tuple["Positions", ...], Field(min_length=1, max_length=100)]


class Or(Frozen):
    """Tokens that any of these rules chooses."""

    at: Literal["or"] = "or"
    of: Annotated[tuple["Positions", ...], Field(min_length=1, max_length=100)]


class Not(Frozen):
    """Tokens that this rule does not choose."""

    at: Literal["not"] = "not"
    of: "Positions"

    @model_validator(mode="after")
    def _not_everything(self) -> "Not":
        if isinstance(self.of, All):
            raise ValueError("not(all) chooses no token at all")
        return self


Positions = Annotated[
    All | Index | Slice | Last | Tokens | AfterFirst | Prompt | Generated | Special | And | Or | Not, Field(discriminator="at")
]
"""Any of the rules."""

for _rule in (And, Or, Not):
    _rule.model_rebuild()

EVERY = All()
"""The rule that chooses every token."""
