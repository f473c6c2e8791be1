"""What a run gives: numbers with their uncertainty, and names of artefacts. Imports without torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    """Everything a run found out that fits a page; the per-prompt numbers are in its artefacts."""

    kind: Literal["ablation"]
    clean: Annotated[Estimate, Field(description="The metric of the unedited model.")]
    effects: Effects
    coverage: Coverage
    notes: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=50)] = ()
    artifacts: Annotated[tuple[ArtifactRef, ...], Field(max_length=100)] = ()
