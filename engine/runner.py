"""The one way anything is run: spec in, result out, everything on the way told to a recorder."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.device import detect_hardware
from engine.errors import Conflict
from engine.experiments.ablation import run_ablation
from engine.experiments.selftest import run_selftest
from engine.models.loading import LoadedModel, load_model
from engine.provenance import Provenance, engine_version, git_state, library_versions, safe_argv
from engine.recorder import Recorder
from engine.result import AnyResult
from engine.settings import Settings, read_settings
from engine.spec import AnySpec
from engine.text.datasets import Dataset, load_dataset

Experiment = Callable[..., AnyResult]
"""Called with the spec, the recorder and the model, and each of the spec's datasets under the name of its field."""

EXPERIMENTS: dict[str, Experiment] = {"ablation": run_ablation, "selftest": run_selftest}
"""Spec kind -> the function that answers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    datasets: Mapping[str, Dataset]
    loaded: LoadedModel


def run(
    spec: AnySpec,
    recorder: Recorder,
    *,
    settings: Settings | None = None,
    device: str | None = None,
    preset: str | None = None,
    loaded: LoadedModel | None = None,
) -> AnyResult:
    """The result of a spec.

    Args:
        spec: what to do, its limits included.
        recorder: hears of the start, the progress, the numbers and the end.
        settings: where models are kept; read from the environment when left out.
        device: as in `load_model`; that of the settings when left out.
        preset: name of the preset whose caps are already in the spec; recorded, not applied.
        loaded: the spec's model, by whoever has it already; loaded when left out.

    Raises:
        Conflict: an edit is in place on the model, of which the spec says nothing.
        LabError: bad input, cancelled, or no room; the recorder has heard of it first.
    """
    try:
        inputs = _load(spec, settings or read_settings(), device, loaded)
        return _run(spec, recorder, inputs, preset)
    except BaseException as error:
        recorder.fail(error, traceback.format_exc())
        raise


def _run(spec: AnySpec, recorder: Recorder, inputs: _Inputs, preset: str | None) -> AnyResult:
    _refuse_edited(inputs.loaded)
    provenance = _provenance(spec, inputs, preset)
    recorder.begin(spec, provenance)
    started = time.monotonic()
    result = EXPERIMENTS[spec.kind](spec, recorder, inputs.loaded, **inputs.datasets)
    result = result.model_copy(update={"notes": (*inputs.loaded.notes, *result.notes)})
    recorder.finish(result, provenance.model_copy(update={"duration_s": time.monotonic() - started}))
    return result


def _refuse_edited(loaded: LoadedModel) -> None:
    with loaded.lock:
        if loaded.wiring.edited:
            raise Conflict(
                f"an edit is in place on '{loaded.ref.id}', and a spec is about the model as it is.",
                next_step="Run the spec outside of the edit, or make an experiment of your own of it.",
            )


def _load(spec: AnySpec, settings: Settings, device: str | None, given: LoadedModel | None) -> _Inputs:
    """What the run needs; the cheap part first, so that a wrong dataset is told before a model is loaded."""
    datasets = {field: load_dataset(ref) for field, ref in spec.datasets.items()}
    loaded = given or load_model(spec.model, device=device or settings.device, data_dir=settings.data_dir)
    return _Inputs(datasets=datasets, loaded=loaded)


def _provenance(spec: AnySpec, inputs: _Inputs, preset: str | None) -> Provenance:
    commit, dirty = git_state()
    reference = inputs.datasets.get("reference")
    return Provenance(
        spec_sha256=spec.sha256,
        question_sha256=spec.question_sha256,
        model_fingerprint=inputs.loaded.fingerprint,
        model_commit=inputs.loaded.commit,
        dataset_sha256=inputs.datasets["dataset"].sha256,
        reference_sha256=reference.sha256 if reference else None,
        engine_version=engine_version(),
        versions=library_versions(),
        git_commit=commit,
        git_dirty=dirty,
        argv=safe_argv(sys.argv),
        seeds=spec.drawn_with,
        preset=preset,
        hardware=detect_hardware(inputs.loaded.device),
        started_at=datetime.now(UTC),
    )
