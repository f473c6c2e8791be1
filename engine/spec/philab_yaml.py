"""PHILAB's experiment YAML, read as our specs. What cannot be expressed is refused by name, never dropped silently."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, cast

from engine.errors import SpecError
from engine.spec.any import NamedSpec, parse_spec

_KNOWN = {
    *("id", "description", "type", "task", "dataset", "layers", "layer_range", "heads", "head_range", "ablation_mode", "metrics"),
    *("adapters", "hooks", "hook_template", "ablations", "interventions", "logging", "probe_tasks", "geometry", "word_pairs", "relation"),
}
_REFUSED_WHEN_SET = ("adapters", "ablations", "interventions", "word_pairs", "relation", "probe_tasks", "geometry")
_NOT_NEEDED = ("hooks", "hook_template", "logging")
_METRICS = {"loss": "loss", "delta_loss": "loss", "loss_delta": "loss", "accuracy": "accuracy", "accuracy_delta": "accuracy"}


def is_philab(values: Mapping[str, Any]) -> bool:
    """Whether a mapping looks like PHILAB's format: it says `type` or `task`, where ours says `kind`."""
    return "kind" not in values and "spec" not in values and ("type" in values or "task" in values)


def from_philab(values: Mapping[str, Any], *, default_model: str) -> NamedSpec:
    """Our spec for a PHILAB experiment.

    Raises:
        SpecError: the kind or a block of it has no counterpart here; the text names it.
    """
    _refuse_unknown(values)
    kind = values.get("type", values.get("task"))
    if kind != "head_ablation":
        raise SpecError(f"PHILAB experiment type {kind!r} cannot be imported; expected 'head_ablation'.")
    metric, notes = _metric(values.get("metrics") or [])
    spec = parse_spec(
        {
            "kind": "ablation",
            "model": {"id": default_model},
            "dataset": _dataset(values.get("dataset")),
            "layers": _indices(values, "layers", "layer_range"),
            "heads": _indices(values, "heads", "head_range"),
            "mode": values.get("ablation_mode", "zero"),
            "metric": metric,
        }
    )
    notes += [f"'{key}' is not needed here: sites follow from the kind, and every run is logged." for key in _NOT_NEEDED if values.get(key)]
    name = str(values.get("id") or f"{kind}")
    return NamedSpec(spec=spec, name=name[:200], description=str(values.get("description", "")), notes=tuple(notes))


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in _KNOWN:
            raise SpecError(f"'{key}' is not a key of PHILAB's experiment format; expected one of: {', '.join(sorted(_KNOWN))}.")
    for key in _REFUSED_WHEN_SET:
        if values.get(key):
            raise SpecError(f"'{key}' of this PHILAB experiment has no counterpart in kind 'ablation'.", next_step=f"Remove '{key}'.")


def _metric(names: object) -> tuple[str, list[str]]:
    if not isinstance(names, list):
        raise SpecError(f"'metrics' is {names!r}; expected a list such as [loss].")
    names = [str(name) for name in cast("list[object]", names)]
    chosen = [_METRICS[name] for name in names if name in _METRICS]
    if names and not chosen:
        raise SpecError(f"none of the metrics {names} is known; expected one of: {', '.join(_METRICS)}.")
    metric = "loss" if not chosen or "loss" in chosen else chosen[0]
    left = [name for name in names if _METRICS.get(name) != metric]
    return metric, [f"a run measures one metric, here '{metric}'; left out: {', '.join(left)}."] if left else []


def _dataset(block: object) -> dict[str, Any]:
    if not isinstance(block, Mapping):
        raise SpecError(f"'dataset' is {block!r}; expected a mapping with 'name' or 'path'.")
    block = cast("Mapping[str, Any]", block)
    if block.get("huggingface_name"):
        raise SpecError(f"dataset '{block['huggingface_name']}' is on the hub.", next_step="Save it as JSONL and give its 'path'.")
    names = [file.name for file in (files("engine") / "resources" / "datasets").iterdir()]
    shipped = {name.removesuffix(".jsonl") for name in names if name.endswith(".jsonl")}
    candidates = [str(block.get("name", "")), PurePosixPath(str(block.get("path", ""))).stem]
    for candidate in candidates:
        if candidate in shipped:
            return {"name": candidate}
    if block.get("path"):
        return {"path": str(block["path"])}
    raise SpecError(f"dataset {block.get('name')!r} is not shipped and has no 'path'; shipped: {', '.join(sorted(shipped))}.")


def _indices(values: Mapping[str, Any], listed: str, ranged: str) -> Any:
    """A list, `all`, or a half-open range as the list it means."""
    if values.get(listed) is not None:
        return values[listed]
    match values.get(ranged):
        case None:
            return "all"
        case [int(first), int(stop)] if 0 <= first < stop <= 10_000:
            return list(range(first, stop))
        case other:
            raise SpecError(f"'{ranged}' is {other!r}; expected [first, one past the last].")
