"""One run on this machine, kept in a folder: what `philab run`, `run_experiment` and contributors share."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from engine.custom import CustomCall, CustomResult
from engine.errors import Conflict
from engine.folder import FolderRecorder, read_folder
from engine.provenance import Provenance
from engine.result import AblationResult, AnyResult
from engine.settings import read_settings
from engine.spec.any import AnySpec, NamedSpec
from scripts.exit_code import stop_on_interrupt
from scripts.result_table import ProgressLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A finished run and where it lies.

    Attributes:
        telemetry: geometry of the activations, when it was asked for.
    """

    run_id: str
    folder: Path
    spec: AnySpec
    result: AnyResult
    provenance: Provenance
    telemetry: dict[str, Any] | None = None

    @property
    def answer(self) -> AblationResult:
        """The result of a run for a task; tasks ask nothing else."""
        assert isinstance(self.result, AblationResult), f"no task asks for kind '{self.result.kind}'"
        return self.result


def file_name(named: NamedSpec) -> str:
    """A name for files about a spec: its own, as lower-case letters, digits and hyphens, and the beginning of its hash."""
    words = re.sub(r"[^a-z0-9]+", "-", (named.name or named.spec.kind).lower()).strip("-")[:60].rstrip("-")
    return f"{words or named.spec.kind}-{named.spec.sha256[:8]}"


def execute(
    named: NamedSpec,
    folder: Path,
    *,
    device: str | None = None,
    preset: str | None = None,
    telemetry: bool = False,
    on_progress: Callable[[float, str], None] | None = None,
    stop: Event | None = None,
) -> Execution:
    """Runs a spec into a folder, or goes on with it there; torch is loaded here and not before.

    Raises:
        LabError: as `engine.runner.run`, and when the folder is in use.
    """
    if stop is None:
        with stop_on_interrupt() as asked:
            return execute(named, folder, device=device, preset=preset, telemetry=telemetry, on_progress=on_progress, stop=asked)
    recorder = FolderRecorder(folder, name=named.name, on_progress=on_progress or ProgressLine(), stop=stop)
    recorder.expect(named.spec)

    from engine.runner import run

    run(named.spec, recorder, device=device, preset=preset)
    measured = measure(named.spec, device=device) if telemetry else None
    return reread(folder, telemetry=measured)


def reread(folder: Path, *, telemetry: dict[str, Any] | None = None) -> Execution:
    """The finished run in a folder.

    Raises:
        Conflict: it did not finish, or is of somebody's own code.
    """
    kept = read_folder(folder)
    if isinstance(kept.spec, CustomCall) or isinstance(kept.result, CustomResult):
        raise Conflict(
            f"the run in {folder} is of somebody's own code, which is local: it answers no task and cannot be sent.",
            next_step="Add it to your own lab with philab import.",
        )
    if kept.result is None or kept.provenance is None:
        raise Conflict(f"the run in {folder} is {kept.status}; expected a finished one.")
    return Execution(
        run_id=str(kept.id), folder=folder, spec=kept.spec, result=kept.result, provenance=kept.provenance, telemetry=telemetry
    )


def measure(spec: AnySpec, *, device: str | None = None) -> dict[str, Any]:
    """Geometry telemetry of the spec's model on the spec's prompts."""
    from engine.models.loading import load_model
    from engine.telemetry import measure_telemetry
    from engine.text.datasets import load_dataset

    loaded = load_model(spec.model, device=device, data_dir=read_settings().data_dir)
    rows = load_dataset(spec.dataset).rows
    return measure_telemetry(loaded, rows[: spec.limits.records], max_length=spec.limits.max_length)
