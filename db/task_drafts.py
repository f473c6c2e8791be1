"""A task before it exists: what its author fills in, and the shards that follow from it."""

from math import ceil
from random import random
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from db.schema import Task, WorkUnit
from engine.errors import SpecError
from engine.evidence.validation import TOLERANCES
from engine.spec import TaskSpec, parse_spec, parse_text, spec_to_yaml
from engine.spec.any import explain
from engine.spec.base import Frozen, Rows
from engine.spec.sharing import check_shareable
from engine.text.datasets import Dataset, load_dataset

DEFAULT_RUNS = 50
DEFAULT_REPLICAS = 2
MIN_SHARD_SIZE = 2  # one prompt has no standard error


class TaskDraft(Frozen):
    """What somebody fills in to make a task. Hashes, rows and the number of runs follow from it."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="Title of the card.")]
    description: Annotated[str, Field(max_length=20_000)] = ""
    hypothesis: Annotated[str, Field(max_length=20_000, description="What the author expects to be found.")] = ""
    spec_yaml: Annotated[str | None, Field(max_length=65_536, description="The spec as YAML or JSON text.")] = None
    spec: Annotated[dict[str, Any] | None, Field(description="The spec as JSON, instead of spec_yaml.")] = None
    dataset_name: Annotated[str | None, Field(max_length=64, description="Must be the spec's own dataset when given.")] = None
    runs_needed: Annotated[int | None, Field(ge=1, le=200_000, description="Shards × replicas; rounded up to whole shards.")] = None
    n_shards: Annotated[int | None, Field(ge=1, le=10_000, description="Parts that the rows are cut into.")] = None
    shard_size: Annotated[
        int | None, Field(ge=MIN_SHARD_SIZE, le=1_000_000, description="Rows per shard; as many as fit when left out.")
    ] = None
    replicas: Annotated[int | None, Field(ge=1, le=20, description="People who answer each shard.")] = None
    max_attempts: Annotated[int | None, Field(ge=1, le=100, description="Answers per shard before it is given up.")] = None
    tolerance: Annotated[float | None, Field(gt=0, le=10, description="Replicas agree within so many standard errors.")] = None
    delta: Annotated[float, Field(ge=0, le=1e6, description="Smallest effect of interest, in the metric's unit.")] = 0.0
    lease_ttl_s: Annotated[int, Field(ge=10, le=7 * 24 * 3600, description="How long one person may hold a shard.")] = 3600
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=40)], ...], Field(max_length=20)] = ()

    @model_validator(mode="after")
    def _one_spec(self) -> Self:
        if (self.spec is None) == (self.spec_yaml is None):
            raise ValueError("a task needs exactly one of 'spec_yaml' and 'spec'")
        return self


def draft_from(values: dict[str, Any]) -> TaskDraft:
    """The draft in a mapping.

    Raises:
        SpecError: a field is missing, unknown or wrong; the text names it.
    """
    try:
        return TaskDraft.model_validate(values)
    except ValidationError as wrong:
        raise SpecError(explain(wrong)) from wrong


def draft_spec(draft: TaskDraft) -> TaskSpec:
    """The spec of a draft.

    Raises:
        SpecError: it is wrong, means something else on another machine, or contradicts the draft.
    """
    spec = parse_text(draft.spec_yaml).spec if draft.spec_yaml is not None else parse_spec(draft.spec or {})
    if draft.dataset_name is not None and draft.dataset_name != spec.dataset.name:
        raise SpecError(
            f"'dataset_name' is '{draft.dataset_name}', but the spec asks for '{spec.dataset.name}'.", next_step="Leave it out."
        )
    spec = check_shareable(spec)
    if spec.limits.records is not None:
        raise SpecError("'limits.records' has no meaning in a task.", next_step="Set the dataset's 'rows' instead.")
    return spec


def task_row(draft: TaskDraft, spec: TaskSpec) -> Task:
    """The task that a draft describes, not stored yet, with its hashes and the size of its shards.

    Raises:
        DatasetError: the dataset is unknown or differs from the hash given.
        SpecError: the metric is not defined on all rows, or they cannot be cut into such shards.
    """
    dataset = load_dataset(spec.dataset)
    if spec.reference is not None:
        load_dataset(spec.reference)  # must exist before people start to work
    _check_rows(spec, dataset)
    n_shards, shard_size, replicas = _cut(draft, len(dataset.rows))
    assert spec.dataset.name is not None, "checked by check_shareable"
    return Task(
        name=draft.name.strip(),
        description=draft.description,
        hypothesis=draft.hypothesis,
        spec=spec.model_dump(mode="json"),
        spec_yaml=spec_to_yaml(spec, name=draft.name.strip()),
        spec_hash=spec.sha256,
        question_sha256=spec.question_sha256,
        dataset_name=spec.dataset.name,
        dataset_hash=dataset.sha256,
        model_id=spec.model.id,
        metric=spec.metric,
        delta=draft.delta,
        n_shards=n_shards,
        shard_size=shard_size,
        replicas=replicas,
        max_attempts=max(draft.max_attempts or 3 * replicas, replicas),
        tolerance=draft.tolerance or TOLERANCES[spec.model.dtype],
        lease_ttl_s=draft.lease_ttl_s,
        priority=draft.priority,
        tags=list(draft.tags),
    )


def _check_rows(spec: TaskSpec, dataset: Dataset) -> None:
    """The metric must be defined on every row, or somebody's shard could not be answered."""
    needed = {"loss": (), "target_loss": ("target",), "logit_diff": ("target", "distractor"), "accuracy": ("target", "distractor")}
    for row in dataset.rows:
        missing = [field for field in needed[spec.metric] if getattr(row, field) is None]
        if missing:
            raise SpecError(f"metric '{spec.metric}' needs a '{missing[0]}'; row '{row.id}' of dataset '{dataset.name}' has none.")


def _cut(draft: TaskDraft, rows: int) -> tuple[int, int, int]:
    """Number of shards, rows in each, and replicas."""
    replicas = draft.replicas or (1 if draft.runs_needed == 1 else DEFAULT_REPLICAS)
    n_shards = draft.n_shards
    if n_shards is None:
        fitting = max(1, rows // (draft.shard_size or MIN_SHARD_SIZE))
        n_shards = ceil(draft.runs_needed / replicas) if draft.runs_needed else min(DEFAULT_RUNS // replicas, fitting)
    elif draft.runs_needed not in (None, n_shards * replicas):
        raise SpecError(f"'runs_needed' is {draft.runs_needed}, but {n_shards} shards × {replicas} replicas are {n_shards * replicas}.")
    shard_size = draft.shard_size or rows // n_shards
    if shard_size < MIN_SHARD_SIZE or n_shards * shard_size > rows:
        raise SpecError(
            f"{rows} rows cannot be cut into {n_shards} shards of {max(shard_size, MIN_SHARD_SIZE)} rows.",
            next_step="Ask for fewer runs, or for more rows.",
        )
    return n_shards, shard_size, replicas


def work_units(task: Task, spec: TaskSpec) -> list[WorkUnit]:
    """The shards of a stored task: equal, disjoint, in a random order of their own."""
    start = spec.dataset.rows.start if spec.dataset.rows else 0
    units: list[WorkUnit] = []
    for number in range(task.n_shards):
        rows = Rows(start=start + number * task.shard_size, stop=start + (number + 1) * task.shard_size)
        units.append(
            WorkUnit(
                task_id=task.id,
                shard_no=number,
                row_start=rows.start,
                row_stop=rows.stop,
                spec_sha256=spec.with_rows(rows).sha256,
                n_open=task.replicas,
                shuffle=random(),
            )
        )
    return units
