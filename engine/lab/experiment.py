"""An experiment of one's own: a function that is given a model and gives back numbers. Its runs are local, and marked as custom."""

import inspect
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import update_wrapper
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from rfc8785 import CanonicalizationError
from safetensors.torch import save
from torch import Tensor

from engine.custom import CustomCall, CustomResult
from engine.device import detect_hardware
from engine.errors import SpecError
from engine.folder import FolderRecorder, read_folder
from engine.lab.model import Model
from engine.lab.runs import Finished, finished, kept_in
from engine.lab.source import source_of
from engine.lab.watch import watch_of
from engine.provenance import Provenance, engine_version, git_state, library_versions, safe_argv
from engine.result import ArtifactRef
from engine.spec.any import explain
from engine.text.datasets import content_sha256

Function = Callable[..., Mapping[str, Any]]

TENSORS = "tensors.safetensors"
NOTE = "This run is of somebody's own code. It is local: no spec, no task, and it cannot be sent."


class Experiment:
    """A function of a model that can be run: `my.run(model, out=DIR, layer=3)`. Called plainly it is the function that it was."""

    def __init__(self, function: Function) -> None:
        """Takes a function whose first argument is the model, and which gives back names and numbers (or tensors).

        Raises:
            SpecError: it has an argument called 'out'.
        """
        update_wrapper(self, function)
        self._function = function
        self._signature = inspect.signature(function)
        if "out" in self._signature.parameters:
            raise SpecError(f"'{function.__name__}' has an argument 'out', which names the run's folder.", next_step="Call it otherwise.")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives back; nothing is kept."""
        return self._function(*args, **kwargs)

    def run(self, model: Model, /, out: Path | str | None = None, **parameters: Any) -> Finished:
        """The finished run, with the function's text, its arguments and its numbers kept in a folder.

        The model's lock is held meanwhile, and texts of own functions that were in place as edits are kept as well.

        Args:
            model: is given to the function.
            out: folder for the run, new or empty; a temporary one when left out.
            parameters: the function's other arguments; they are kept, so they must be what JSON can hold.

        Raises:
            SpecError: an argument cannot be kept, or the function gave back something else than names and numbers.
            Conflict: the folder is used.
        """
        given = self._given(model, parameters)
        with kept_in(out) as (folder, done):
            _make_way(folder)
            _recorded(self._function, model, given, FolderRecorder(folder, name=self._function.__name__))
            done.append(finished(folder))
        return done[0]

    def _given(self, model: Model, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments but the model, with their defaults."""
        try:
            bound = self._signature.bind(model, **parameters)
        except TypeError as wrong:
            raise SpecError(f"'{self._function.__name__}' cannot be called like that: {wrong}.") from wrong
        bound.apply_defaults()
        (_, *named) = bound.arguments.items()
        kinds = self._signature.parameters
        flat = dict[str, Any]()
        for name, value in named:
            flat |= value if kinds[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return flat


def experiment(function: Function) -> Experiment:
    """The function as an experiment of one's own; use as a decorator."""
    return Experiment(function)


def _make_way(folder: Path) -> None:
    """A failed run of somebody's own code is removed: nothing goes on from it, and the code was probably changed since."""
    if not (folder / "run.json").is_file():
        return
    kept = read_folder(folder)
    if isinstance(kept.spec, CustomCall) and kept.status in ("failed", "cancelled"):
        shutil.rmtree(folder)


def _recorded(function: Function, model: Model, given: Mapping[str, Any], recorder: FolderRecorder) -> None:
    """Calls the function, with all that belongs to a run around it."""
    try:
        with model.loaded.lock, watch_of(model.loaded).listening() as heard:
            call = _call(function, model, given)
            provenance = _provenance(call, model)
            recorder.begin(call, provenance)
            started = time.monotonic()
            made = function(model, **given)
        duration_s = time.monotonic() - started
        result = _result(made, recorder).model_copy(update={"functions": tuple(dict.fromkeys(heard))})
        recorder.finish(result, provenance.model_copy(update={"duration_s": duration_s}))
    except BaseException as error:
        recorder.fail(error, traceback.format_exc())
        raise


def _call(function: Function, model: Model, given: Mapping[str, Any]) -> CustomCall:
    edits = [edit.model_dump(mode="json") for mark in watch_of(model.loaded).now for edit in mark.edits]
    try:
        call = CustomCall(
            name=function.__name__,
            model=model.loaded.ref,
            parameters={name: _as_json(name, value) for name, value in given.items()},
            source=source_of(function, "experiment"),
            edits=tuple(edits),
        )
        assert call.sha256
    except ValidationError as wrong:
        raise SpecError(f"this run cannot be kept: {explain(wrong)}") from wrong
    except CanonicalizationError as wrong:
        raise SpecError(f"an argument cannot be kept as JSON: {wrong}.", next_step="Give whole numbers below 2^53, or text.") from wrong
    return call


def _as_json(name: str, value: Any) -> Any:
    """A value that is kept: what JSON can hold, or data of philab's own, such as an edit."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_as_json(name, one) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _as_json(name, one) for key, one in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise SpecError(
        f"argument '{name}' is {type(value).__name__}, and a run keeps its arguments as JSON.",
        next_step="Give numbers, texts, lists or edits, and make the rest inside the experiment.",
    )


def _result(made: object, recorder: FolderRecorder) -> CustomResult:
    if not isinstance(made, Mapping):
        raise SpecError(f"the experiment gave back {type(made).__name__}; expected names and numbers.", next_step="Return a mapping.")
    tensors = {str(name): value.detach().cpu().contiguous() for name, value in made.items() if isinstance(value, Tensor) and value.dim()}
    numbers = {str(name): _number(name, value) for name, value in made.items() if str(name) not in tensors}
    files: tuple[ArtifactRef, ...] = ()
    if tensors:
        files = (recorder.artifact(TENSORS, save(tensors), "application/x-safetensors"),)
    try:
        return CustomResult(metrics=numbers, artifacts=files, notes=(NOTE,))
    except ValidationError as wrong:
        raise SpecError(f"the experiment's numbers cannot be kept: {explain(wrong)}") from wrong


def _number(name: object, value: object) -> float:
    if isinstance(value, Tensor):
        return float(value)
    if isinstance(value, int | float | np.number):
        return float(value)
    raise SpecError(f"the experiment gave back {type(value).__name__} as '{name}'; expected a number or a tensor.")


def _provenance(call: CustomCall, model: Model) -> Provenance:
    """Where the numbers come from. No rows of a dataset are known to belong to it, so the dataset's hash is that of no rows."""
    commit, dirty = git_state()
    return Provenance(
        spec_sha256=call.sha256,
        question_sha256=call.question_sha256,
        model_fingerprint=model.loaded.fingerprint,
        model_commit=model.loaded.commit,
        dataset_sha256=content_sha256(()),
        engine_version=engine_version(),
        versions=library_versions(),
        git_commit=commit,
        git_dirty=dirty,
        argv=safe_argv(sys.argv),
        hardware=detect_hardware(model.device),
        started_at=datetime.now(UTC),
    )
