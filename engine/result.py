"""What a run gives: numbers with their uncertainty, and names of artefacts. Imports without torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from engine.hooks.sites import Site
from engine.spec.base import Frozen, Sha256

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]


class Estimate(Frozen):
    """A mean over prompts with its standard error and 95 % t-interval, in the metric's unit.

    The interval speaks of other prompts like these, for this model. It says nothing of other models or other kinds of text.
    """

    mean: Finite
    se: Annotated[Finite, Field(ge=0)]
    low: Finite
    high: Finite
    n: Annotated[int, Field(ge=1)]


class Effects(Frozen):
    """metric(edited) − metric(clean) per site, as columns of equal length; means over `n` prompts."""

    metric: str
    unit: str
    sites: Annotated[tuple[Site, ...], Field(min_length=1, max_length=100_000)]
    estimate: tuple[Finite, ...]
    se: tuple[Annotated[Finite, Field(ge=0)], ...]
    low: tuple[Finite, ...]
    high: tuple[Finite, ...]
    n: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in ("sites", "estimate", "se", "low", "high")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"effect columns differ in length: {lengths}")
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("effect columns name a site twice")
        return self


class Coverage(Frozen):
    """How much of the question was really asked; runs are compared only at equal coverage."""

    rows: Annotated[int, Field(ge=1, description="Prompts used.")]
    rows_available: Annotated[int, Field(ge=1, description="Prompts the spec's rows hold before limits.")]
    layers: Annotated[int, Field(ge=1, description="Layers used.")]
    layers_available: Annotated[int, Field(ge=1, description="Layers of the model.")]
    heads: Annotated[int, Field(ge=0, description="Heads used per layer; 0 where the site has none.")]
    heads_available: Annotated[int, Field(ge=0, description="Query heads per layer of the model.")]


class ArtifactRef(Frozen):
    """A stored file: its name within the run, and its content hash in the store."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}$")]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    media_type: Annotated[str, Field(max_length=100)]


class Result(Frozen):
    """What all results share. Everything that fits a page is in it; larger tables are in its artefacts."""

    coverage: Coverage
    notes: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=50)] = ()
    artifacts: Annotated[tuple[ArtifactRef, ...], Field(max_length=100)] = ()


class AblationResult(Result):
    """What was lost when each component was taken away; the per-prompt numbers are in the artefacts."""

    kind: Literal["ablation"] = "ablation"
    clean: Annotated[Estimate, Field(description="The metric of the unedited model.")]
    effects: Effects


class Check(Frozen):
    """Two ways to the same numbers, and how far apart they came out."""

    name: Annotated[str, Field(min_length=1, max_length=60, description="Short and unique in the result.")]
    passed: Annotated[bool | None, Field(description="Whether they agree; none where the model has nothing to compare.")]
    difference: Annotated[Finite | None, Field(ge=0, description="Largest difference that was measured.")] = None
    tolerance: Annotated[Finite | None, Field(ge=0, description="Largest difference that is agreement.")] = None
    unit: Annotated[str, Field(max_length=60, description="What difference and tolerance are measured in.")] = ""
    about: Annotated[str, Field(max_length=1000, description="What was compared with what.")]
    detail: Annotated[str, Field(max_length=2000, description="Where the largest difference is, or why nothing was compared.")] = ""


class SelfTestResult(Result):
    """How every check of the engine on a model came out."""

    kind: Literal["selftest"] = "selftest"
    checks: Annotated[tuple[Check, ...], Field(min_length=1, max_length=200)]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks whose two ways do not agree."""
        return tuple(check for check in self.checks if check.passed is False)


AnyResult = AblationResult | SelfTestResult
"""The union of all kinds, told apart by `kind`."""

RESULTS: dict[str, type[AnyResult]] = {"ablation": AblationResult, "selftest": SelfTestResult}

_reader: TypeAdapter[AnyResult] = TypeAdapter(Annotated[AnyResult, Field(discriminator="kind")])


def parse_result(values: Mapping[str, Any]) -> AnyResult:
    """The result that a mapping describes, as it was stored.

    Raises:
        pydantic.ValidationError: the kind is unknown, or a field is missing, unknown or wrong.
    """
    return _reader.validate_python(dict(values))
