"""Runs from Python: a spec in, a finished run out that shows itself. No database; `philab import` adds its folder to one later."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from engine.custom import Answer, Asked
from engine.errors import SpecError
from engine.folder import FolderRecorder, read_folder
from engine.lab.display import html_table, text_table
from engine.lab.frames import frame_of, rows_of
from engine.models.loading import LoadedModel
from engine.presets import apply_preset
from engine.provenance import Provenance
from engine.runner import run as run_spec
from engine.settings import read_settings
from engine.spec import AnySpec, NamedSpec, parse_spec, read_spec
from engine.spec.base import Spec

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

SHOWN = 10
"""Rows of a result that show themselves; `to_pandas` has all."""

AskedFor = Spec | NamedSpec | Mapping[str, Any] | str | Path
"""A spec, a mapping (as from JSON), the name of a shipped spec, or a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished run.

    Attributes:
        id: UUIDv7 of the run.
        name: what people call it.
        spec: what it was asked; for somebody's own code what was called.
        result: what came of it.
        provenance: where the numbers come from.
        folder: where it is kept; without `out` a temporary one, which goes when this value goes.
        artifacts: files of the run by name.
    """

    id: UUID
    name: str
    spec: Asked
    result: Answer
    provenance: Provenance
    folder: Path
    artifacts: Mapping[str, Path]

    def to_pandas(self) -> "pandas.DataFrame":
        """One tidy row per site (per check, per number), with estimate, standard error and interval where there are any."""
        return frame_of(self.result)

    def tensors(self) -> "dict[str, Tensor]":
        """All tensors in the run's artefacts, by name; for an ablation each prompt's effect at each site."""
        from safetensors.torch import load_file

        files = [file for name, file in self.artifacts.items() if name.endswith(".safetensors")]
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def __repr__(self) -> str:
        """A heading and the first rows."""
        return text_table(*self._shown())

    def _repr_html_(self) -> str:
        return html_table(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[list[Any]], list[str]]:
        rows = rows_of(self.result)
        if rows and "estimate" in rows[0]:
            rows = sorted(rows, key=lambda row: -abs(row["estimate"]))
        columns = list(rows[0]) if rows else []
        cut = [f"The first {SHOWN} of {len(rows)} rows; to_pandas() has all."] if len(rows) > SHOWN else []
        heading = f"{self.name or self.spec.kind}: {self.spec.kind} on {self.spec.model.id}"
        return heading, columns, [list(row.values()) for row in rows[:SHOWN]], [*cut, *self.result.notes]


def run(
    spec: AskedFor,
    out: Path | str | None = None,
    *,
    name: str = "",
    preset: str | None = None,
    device: str | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Finished:
    """The finished run of a spec.

    Args:
        spec: a spec, a mapping (as from JSON), the name of a shipped one, or a file.
        out: folder for the run, new or empty, to be kept and perhaps imported; a temporary one when left out.
        name: what to call it; the spec's own name when left out.
        preset: caps for this machine, as `philab run --preset`.
        device: where to compute.
        on_progress: hears of the share that is done, and what happens now.

    Raises:
        Conflict: the folder is used, or an edit is in place on the model.
        LabError: bad input, or no room.
    """
    return _run(_named(spec, name, preset), out, preset=preset, device=device, on_progress=on_progress)


def run_on(
    loaded: LoadedModel,
    spec: AskedFor,
    *,
    out: Path | str | None = None,
    name: str = "",
    preset: str | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Finished:
    """The same on a model that is in memory already.

    Raises:
        SpecError: the spec is about another model.
    """
    if isinstance(spec, Mapping) and "model" not in spec:
        spec = {**spec, "model": loaded.ref.model_dump()}
    named = _named(spec, name, preset)
    if named.spec.model != loaded.ref:
        raise SpecError(
            f"the spec is about '{named.spec.model.id}' ({named.spec.model.dtype}), this is '{loaded.ref.id}' ({loaded.ref.dtype}).",
            next_step="Use philab.run, which loads the spec's model.",
        )
    return _run(named, out, preset=preset, on_progress=on_progress, loaded=loaded)


@contextmanager
def kept_in(out: Path | str | None) -> Iterator[tuple[Path, list[Finished]]]:
    """The folder to write to, and a list for the finished run: a temporary folder goes when that goes, or when there is none."""
    if out is not None:
        yield Path(out), []
        return
    temporary, done = Path(tempfile.mkdtemp(prefix="philab-run-")), list[Finished]()
    try:
        yield temporary / "run", done
    finally:
        if done:
            weakref.finalize(done[0], shutil.rmtree, temporary, ignore_errors=True)
        else:
            shutil.rmtree(temporary, ignore_errors=True)


def finished(folder: Path) -> Finished:
    """The finished run in a folder."""
    kept = read_folder(folder)
    assert kept.result is not None, f"the run in {folder} is {kept.status}"
    assert kept.provenance is not None, f"the run in {folder} has no provenance"
    return Finished(
        id=kept.id,
        name=kept.name,
        spec=kept.spec,
        result=kept.result,
        provenance=kept.provenance,
        folder=folder,
        artifacts=kept.artifacts,
    )


def _run(named: NamedSpec, out: Path | str | None, *, on_progress: Callable[[float, str], None] | None, **options: Any) -> Finished:
    with kept_in(out) as (folder, done):
        run_spec(named.spec, FolderRecorder(folder, name=named.name, on_progress=on_progress), **options)
        done.append(finished(folder))
    return done[0]


def _named(spec: AskedFor, name: str, preset: str | None) -> NamedSpec:
    named = _read(spec)
    named = replace(named, name=name) if name else named
    return replace(named, spec=apply_preset(named.spec, preset)) if preset else named


def _read(spec: Any) -> NamedSpec:
    if isinstance(spec, NamedSpec):
        return spec
    if isinstance(spec, AnySpec):
        return NamedSpec(spec=spec)
    if isinstance(spec, Mapping):
        return NamedSpec(spec=parse_spec(spec))
    if isinstance(spec, str | Path):
        return read_spec(spec, default_model=read_settings().default_model)
    raise SpecError(f"a spec is {type(spec).__name__}; expected a spec, a mapping, the name of a shipped one, or a file.")
