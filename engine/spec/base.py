"""What all specs share: the model, the dataset, the limits, and an identity that is a hash."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import rfc8785
from pydantic import AfterValidator, Field, model_validator

from engine.model_presets import full_id
from engine.values import Frozen, Sha256

DatasetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1F\x7F-\x9F\u2028\u2029\uFEFF]+$")]
"""Text without control characters: it can be shown, written as YAML and read back."""
Dtype = Literal["float32", "float16", "bfloat16"]
Quantization = Literal["int8", "nf4", "fp4"]


class ModelRef(Frozen):
    """Which model, in which revision and precision. A short name such as `phi-2` becomes the hub id that it stands for."""

    id: Annotated[
        OneLine,
        Field(min_length=1, max_length=200, description="Shipped model, short name, Hugging Face id, or local folder."),
        AfterValidator(full_id),
    ]
    revision: Annotated[
        OneLine | None, Field(max_length=100, description="Commit of the Hugging Face repository; 40 hex digits in a community task.")
    ] = None
    dtype: Annotated[Dtype, Field(description="Precision in which the weights are loaded and the forward runs.")] = "float32"
    attention: Annotated[
        Literal["default", "eager", "sdpa"], Field(description="Attention kernel; 'default' is what the model picks for itself.")
    ] = "default"
    # Left out of the JSON when there is none, so that specs from before it keep their hash.
    quantization: Annotated[
        Quantization | None,
        Field(
            exclude_if=lambda chosen: chosen is None,
            description="Store the layers' weights in fewer bits: 'nf4' or 'fp4' (4 bits), or 'int8' (rounds activations too).",
        ),
    ] = None


class Rows(Frozen):
    """A half-open slice of the rows of a dataset, counted from 0."""

    start: Annotated[int, Field(ge=0, description="First row.")]
    stop: Annotated[int, Field(ge=1, description="Row after the last one.")]

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"rows {self.start}:{self.stop} are empty; expected stop > start")
        return self

    def __len__(self) -> int:
        return self.stop - self.start


class DatasetRef(Frozen):
    """Which dataset, and which rows of it. Exactly one of `name` and `path` is given."""

    name: Annotated[DatasetName | None, Field(description="Shipped or registered dataset.")] = None
    path: Annotated[str | None, Field(min_length=1, max_length=1000, description="Local JSONL or CSV file; never in a community task.")] = (
        None
    )
    sha256: Annotated[Sha256 | None, Field(description="Content hash that the rows must have; checked when given.")] = None
    rows: Annotated[Rows | None, Field(description="Rows to use; all when left out.")] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.path is None):
            raise ValueError("a dataset needs exactly one of 'name' and 'path'")
        return self


class Limits(Frozen):
    """Caps on the work. They are part of the spec, so a capped run never passes for a full one."""

    records: Annotated[int | None, Field(ge=1, le=1_000_000, description="Use only the first N prompts.")] = None
    layers: Annotated[int | None, Field(ge=1, le=1000, description="Use only the first N of the chosen layers.")] = None
    heads: Annotated[int | None, Field(ge=1, le=1000, description="Use only the first N of the chosen heads per layer.")] = None
    max_length: Annotated[int, Field(ge=2, le=131_072, description="Longest prompt in tokens; a longer one is an error, never cut.")] = 512
    batch_size: Annotated[int, Field(ge=1, le=4096, description="Prompts per forward pass of the clean run.")] = 8


class Spec(Frozen):
    """A question to a model. Two specs are the same question exactly when their hashes are equal."""

    schema_version: Annotated[Literal[1], Field(description="Version of the spec format.")] = 1
    model: Annotated[ModelRef, Field(description="Model to ask.")]
    dataset: Annotated[DatasetRef, Field(description="Prompts to ask it on.")]
    limits: Annotated[Limits, Field(description="Caps on the work.")] = Limits()

    def canonical_json(self) -> bytes:
        """The spec as canonical JSON (RFC 8785), all defaults written out."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def sha256(self) -> str:
        """The identity: SHA-256 of the canonical JSON, 64 hex digits."""
        return hashlib.sha256(self.canonical_json()).hexdigest()

    @property
    def datasets(self) -> Mapping[str, DatasetRef]:
        """The datasets that the spec reads, by the name of the field."""
        return {"dataset": self.dataset}

    @property
    def drawn_with(self) -> tuple[int, ...]:
        """Seeds of what is drawn at random; none where nothing is."""
        return ()

    def with_rows(self, rows: Rows | None) -> Self:
        """The same question on other rows of its dataset."""
        return self.model_copy(update={"dataset": self.dataset.model_copy(update={"rows": rows})})

    @property
    def question_sha256(self) -> str:
        """Hash of the question regardless of the rows: the same for all shards of a task. Seeds derive from it."""
        return self.with_rows(None).sha256
