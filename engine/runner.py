"""The one way anything is run: spec in, result out, everything on the way told to a recorder."""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.device import detect_hardware, pick_device
from engine.experiments.ablation import run_ablation
from engine.models.loading import LoadedModel, load_model
from engine.provenance import Provenance, engine_version, git_state, library_versions, safe_argv
from engine.recorder import Recorder
from engine.result import Result
from engine.settings import Settings, read_settings
from engine.spec import AnySpec
from engine.text.datasets import Dataset, load_dataset

Experiment = Callable[[AnySpec, Recorder, LoadedModel, Dataset, Dataset | None], Result]

EXPERIMENTS: dict[str, Experiment] = {"ablation": run_ablation}
"""Spec kind -> the function that answers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    dataset: Dataset
    reference: Dataset | None
    loaded: LoadedModel


def run(
    spec: AnySpec, recorder: Recorder, *, settings: Settings | None = None, device: str | None = None, preset: str | None = None
) -> Result:
    """The result of a spec.

    Args:
        spec: what to do, its limits included.
        recorder: hears of the start, the progress, the numbers and the end.
        settings: where models are kept; read from the environment when left out.
        device: `cuda`, `mps` or `cpu`; the best one there is when left out.
        preset: name of the preset whose caps are already in the spec; recorded, not applied.

    Raises:
        LabError: bad input, cancelled, or no room; the recorder has heard of it first.
    """
    try:
        return _run(spec, recorder, settings=settings or read_settings(), device=device, preset=preset)
    except BaseException as error:
        recorder.fail(error, traceback.format_exc())
        raise


def _run(spec: AnySpec, recorder: Recorder, *, settings: Settings, device: str | None, preset: str | None) -> Result:
    inputs = _load(spec, settings, device)
    provenance = _provenance(spec, inputs, preset)
    recorder.begin(spec, provenance)
    started = time.monotonic()
    result = EXPERIMENTS[spec.kind](spec, recorder, inputs.loaded, inputs.dataset, inputs.reference)
    recorder.finish(result, provenance.model_copy(update={"duration_s": time.monotonic() - started}))
    return result


def _load(spec: AnySpec, settings: Settings, device: str | None) -> _Inputs:
    """What the run needs; the cheap part first, so that a wrong dataset is told before a model is loaded."""
    dataset = load_dataset(spec.dataset)
    reference = load_dataset(spec.reference) if spec.reference else None
    loaded = load_model(spec.model, device=pick_device(device), data_dir=settings.data_dir)
    return _Inputs(dataset=dataset, reference=reference, loaded=loaded)


def _provenance(spec: AnySpec, inputs: _Inputs, preset: str | None) -> Provenance:
    commit, dirty = git_state()
    return Provenance(
        spec_sha256=spec.sha256,
        question_sha256=spec.question_sha256,
        model_fingerprint=inputs.loaded.fingerprint,
        dataset_sha256=inputs.dataset.sha256,
        reference_sha256=inputs.reference.sha256 if inputs.reference else None,
        engine_version=engine_version(),
        versions=library_versions(),
        git_commit=commit,
        git_dirty=dirty,
        argv=safe_argv(sys.argv),
        seeds=spec.seeds,
        preset=preset,
        hardware=detect_hardware(inputs.loaded.device),
        started_at=datetime.now(UTC),
    )
