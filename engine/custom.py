"""Runs of people's own code: what is kept of them. Local only: never a spec, never a task, never sent. Imports without torch.

The code itself is kept as text, so that a reader sees what was done. Nothing here or elsewhere executes that text.
"""

import hashlib
import keyword
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AfterValidator, Field, JsonValue, ValidationError

from engine.errors import SpecError
from engine.result import AnyResult, ArtifactRef, parse_result
from engine.spec import AnySpec, ModelRef, parse_spec
from engine.spec.any import CUSTOM, explain
from engine.values import Frozen

MAX_SOURCE = 200_000
"""Characters of one source text that are kept."""


def _identifier(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError("expected a name as of a function or an argument, such as 'layer'")
    return name


Name = Annotated[str, Field(max_length=100), AfterValidator(_identifier)]
"""A name as Python allows it for functions and parameters."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Source(Frozen):
    """The text of a function."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="What the function calls itself.")]
    role: Annotated[Literal["experiment", "edit"], Field(description="Whether it is the experiment, or an edit that was in place.")]
    at: Annotated[str | None, Field(max_length=200, description="Site of an edit.")] = None
    origin: Annotated[
        Literal["file", "notebook", "unknown"],
        Field(description="Where the text was found; 'unknown' where Python keeps none, as of a function typed at a prompt."),
    ]
    text: Annotated[str, Field(max_length=MAX_SOURCE, description="Source text; empty where it is not known.")]


class CustomCall(Frozen):
    """What was called, with what: it stands where other runs have their spec."""

    kind: Literal["custom"] = "custom"
    name: Annotated[Name, Field(description="Name of the experiment's function.")]
    model: ModelRef
    parameters: Annotated[
        dict[Name, JsonValue], Field(default_factory=dict, max_length=100, description="All arguments but the model, with defaults.")
    ]
    source: Annotated[Source, Field(description="The experiment.")]
    edits: Annotated[tuple[dict[str, JsonValue], ...], Field(max_length=1000, description="Edits in place when it began.")] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(rfc8785.dumps(self.model_dump(mode="json"))).hexdigest()

    @property
    def question_sha256(self) -> str:
        """The same: there are no rows to be left out of it."""
        return self.sha256


class CustomResult(Frozen):
    """What an experiment of one's own gave back."""

    kind: Literal["custom"] = "custom"
    metrics: Annotated[dict[Annotated[str, Field(min_length=1, max_length=200)], Finite], Field(max_length=10_000)]
    functions: Annotated[tuple[Source, ...], Field(max_length=100, description="Functions in place as edits at any time of the run.")] = ()
    notes: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=50)] = ()
    artifacts: Annotated[tuple[ArtifactRef, ...], Field(max_length=100)] = ()


Asked = AnySpec | CustomCall
"""What a run was asked to do."""
Answer = AnyResult | CustomResult
"""What came of it."""


def parse_asked(values: Mapping[str, Any]) -> Asked:
    """The spec, or the call of somebody's own code, that a mapping describes.

    Raises:
        SpecError: it is neither.
    """
    if values.get("kind") != CUSTOM:
        return parse_spec(values)
    try:
        return CustomCall.model_validate(dict(values))
    except ValidationError as wrong:
        raise SpecError(explain(wrong)) from wrong


def parse_answer(values: Mapping[str, Any]) -> Answer:
    """The result that a mapping describes, as it was stored.

    Raises:
        pydantic.ValidationError: the kind is unknown, or a field is missing, unknown or wrong.
    """
    return CustomResult.model_validate(dict(values)) if values.get("kind") == CUSTOM else parse_result(values)
