"""What an ablation has to do, all names resolved against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.errors import SpecError
from engine.experiments.prompts import Prompt, prompts_of
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from engine.provenance import engine_version, library_versions
from engine.recorder import Recorder
from engine.spec.ablation import AblationSpec
from engine.text.datasets import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        identity: what the numbers depend on; measured numbers of one run are of use to another only if all of it is equal.
    """

    spec: AblationSpec
    loaded: LoadedModel
    recorder: Recorder
    prompts: Sequence[Prompt]
    layers: Sequence[int]
    heads: Sequence[int]
    sites: Sequence[Site]
    identity: Mapping[str, str]


def resolve(spec: AblationSpec, recorder: Recorder, loaded: LoadedModel, *, dataset: Dataset, reference: Dataset | None) -> Work:
    """The work that a spec means.

    Raises:
        SpecError: a layer or head is outside the model.
        DatasetError: a row does not fit the metric or the limits.
    """
    rows = dataset.rows[: spec.limits.records]
    layers = _chosen(spec.layers, loaded.anatomy.n_layers, "layer", loaded)[: spec.limits.layers]
    heads = _chosen(spec.heads, loaded.anatomy.n_heads, "head", loaded)[: spec.limits.heads] if spec.site == "z" else []
    sites = [Site(layer=layer, name=spec.site, head=head) for layer in layers for head in (heads or [None])]
    for site in sites:
        loaded.anatomy.check(site, model=f"'{loaded.ref.id}'")
    return Work(
        spec=spec,
        loaded=loaded,
        recorder=recorder,
        prompts=prompts_of(rows, loaded, metric=spec.metric, max_length=spec.limits.max_length),
        layers=layers,
        heads=heads,
        sites=sites,
        identity=_identity(spec, loaded, dataset, reference),
    )


def _identity(spec: AblationSpec, loaded: LoadedModel, dataset: Dataset, reference: Dataset | None) -> dict[str, str]:
    return {
        "spec": spec.sha256,
        "model": loaded.fingerprint,
        "dataset": dataset.sha256,
        "reference": reference.sha256 if reference else "none",
        "engine version": engine_version(),
        "torch version": library_versions().get("torch", "unknown"),
        "device": loaded.device.type,
    }


def _chosen(wanted: Literal["all"] | Sequence[int], there_are: int, what: str, loaded: LoadedModel) -> list[int]:
    """The indices asked for, in the order given.

    Raises:
        SpecError: one is outside the model.
    """
    if wanted == "all":
        return list(range(there_are))
    indices = list(wanted)
    highest = max(indices)
    if highest >= there_are:
        there = f"{what}s 0 to {there_are - 1}" if there_are else f"no {what}s that the engine can tell apart"
        raise SpecError(f"{what} {highest} does not exist: '{loaded.ref.id}' has {there}.", next_step=f"Correct '{what}s' in the spec.")
    return indices
