"""A run kept in a plain folder: no database needed, and `philab import` adds it to one later.

DIR/run.json            status, spec, provenance, result; replaced in one step, so it is never half-written
DIR/items.jsonl         per-prompt rows
DIR/metrics.jsonl       points of curves
DIR/artifacts/<name>    files, with their hashes in run.json
DIR/state.bin           what an unfinished run has measured; the next run of the same spec in this folder goes on from it
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID

import uuid_utils.compat
from pydantic import ValidationError

from engine.custom import Answer, Asked, parse_answer, parse_asked
from engine.errors import Conflict, DatasetError, ModelError, NotFound, RunCancelled, SpecError, StoreError
from engine.provenance import Provenance
from engine.recorder import JsonValue
from engine.result import ArtifactRef
from engine.spec.any import explain
from engine.store import write_atomically

FORMAT = 1
STATE = "state.bin"


class FolderRecorder:
    """Records one run in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        on_progress: Callable[[float, str], None] | None = None,
        stop: Event | None = None,
    ) -> None:
        """Takes a folder that is new, empty, or holds a run that did not finish.

        Raises:
            Conflict: the folder holds a finished run, or something else.
        """
        _refuse_used(folder)
        self.folder = folder
        self._id = uuid_utils.compat.uuid7()
        self._name = name
        self._on_progress = on_progress or _silent
        self._stop = stop or Event()
        self._head: dict[str, Any] = {}
        self._items: list[dict[str, Any]] = []
        self._metrics: list[dict[str, Any]] = []
        self._artifacts: list[ArtifactRef] = []

    @property
    def run_id(self) -> UUID:
        """UUIDv7 of the run."""
        return self._id

    def expect(self, spec: Asked) -> None:
        """Checks that the folder is free for a spec; `begin` does it too, but only when a model is loaded.

        Raises:
            Conflict: it holds an unfinished run of another spec.
        """
        held = _unfinished(self.folder)
        if held is not None and held != spec.sha256:
            raise Conflict(
                f"{self.folder} holds an unfinished run of spec {held[:12]}, not of this one ({spec.sha256[:12]}).",
                next_step="Choose another folder, or remove it.",
            )

    def begin(self, spec: Asked, provenance: Provenance) -> None:
        """Makes the folder, with a run.json that says `running`.

        Raises:
            Conflict: the folder holds an unfinished run of another spec.
        """
        self.expect(spec)
        self._head = {"format": FORMAT, "id": str(self._id), "name": self._name, "spec": spec.model_dump(mode="json")}
        self._write("run.json", self._run_json("running", provenance))

    def progress(self, fraction: float, message: str) -> None:
        """Passes the progress on to whoever watches."""
        self._on_progress(fraction, message)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Keeps a point for metrics.jsonl."""
        self._metrics.append({"name": name, "step": step, "value": value})

    def item(self, key: str, values: Mapping[str, JsonValue]) -> None:
        """Keeps a row for items.jsonl."""
        self._items.append({"key": key, "values": dict(values)})

    def artifact(self, name: str, data: bytes, media_type: str) -> ArtifactRef:
        """Writes `artifacts/<name>`."""
        ref = ArtifactRef(name=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), media_type=media_type)
        self._write(f"artifacts/{name}", data)
        self._artifacts.append(ref)
        return ref

    def save(self, state: bytes) -> None:
        """Writes `state.bin`, in one step."""
        self._write(STATE, state)

    def saved(self) -> bytes | None:
        """The bytes of `state.bin`, if there is one."""
        try:
            return (self.folder / STATE).read_bytes()
        except OSError:
            return None

    def cancelled(self) -> bool:
        """Whether the stop event was set."""
        return self._stop.is_set()

    def finish(self, result: Answer, provenance: Provenance) -> None:
        """Writes the rows, then the run.json that says `ok`."""
        self._write("items.jsonl", _jsonl(self._items))
        self._write("metrics.jsonl", _jsonl(self._metrics))
        self._write("run.json", self._run_json("ok", provenance, result=result.model_dump(mode="json")))
        self._remove_left_over()

    def fail(self, error: BaseException, traceback: str) -> None:
        """Writes a run.json that says `failed` or `cancelled`. Bad input, and a run that never began, leave nothing behind.

        What was measured is left in any case.
        """
        if not self._head:
            return
        if isinstance(error, SpecError | DatasetError | ModelError) and self.saved() is None:
            shutil.rmtree(self.folder)  # it was new, empty, or held a run that did not finish
            return
        status = "cancelled" if isinstance(error, RunCancelled) else "failed"
        self._write("run.json", self._run_json(status, None, error=str(error), traceback=traceback))

    def _run_json(self, status: str, provenance: Provenance | None, **more: Any) -> bytes:
        if provenance is not None:
            self._head["provenance"] = provenance.model_dump(mode="json")
        artifacts = [ref.model_dump(mode="json") for ref in self._artifacts]
        return json.dumps({**self._head, "status": status, "artifacts": artifacts, **more}, indent=1, allow_nan=False).encode()

    def _remove_left_over(self) -> None:
        """What is of no use behind the end: the state, and what a killed run was writing."""
        for file in (self.folder / STATE, *self.folder.glob(f".{STATE}.*"), *self.folder.glob(".run.json.*")):
            file.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        try:
            write_atomically(self.folder / name, data)
        except OSError as failed:
            raise StoreError(
                f"{self.folder / name} cannot be written: {failed.strerror or failed}.", next_step="Choose another folder."
            ) from failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRun:
    """What a run's folder holds. A run of somebody's own code has a `CustomCall` in the place of its spec."""

    id: UUID
    name: str
    status: str
    spec: Asked
    provenance: Provenance | None
    result: Answer | None
    error: str | None = None
    traceback: str | None = None
    items: tuple[tuple[str, dict[str, JsonValue]], ...] = ()
    metrics: tuple[tuple[str, int, float], ...] = ()
    artifacts: Mapping[str, Path] = field(default_factory=dict[str, Path])


def read_folder(folder: Path) -> FolderRun:
    """The run in a folder, its artefacts checked against their hashes.

    Raises:
        NotFound: there is no run.json.
        SpecError: run.json is not one of ours.
        StoreError: an artefact is missing or damaged.
    """
    try:
        head = json.loads((folder / "run.json").read_bytes())
    except OSError as missing:
        raise NotFound(f"{folder} holds no run: run.json is missing.", next_step="Give the folder of `philab run --out`.") from missing
    except ValueError as wrong:
        raise SpecError(f"{folder / 'run.json'} is not JSON: {wrong}.") from wrong
    try:
        return _folder_run(folder, head)
    except ValidationError as wrong:
        raise SpecError(f"{folder / 'run.json'}: {explain(wrong)}") from wrong
    except (KeyError, TypeError, ValueError) as wrong:
        raise SpecError(f"{folder / 'run.json'} is not a run of format {FORMAT}: {wrong!r}.") from wrong


def _folder_run(folder: Path, head: dict[str, Any]) -> FolderRun:
    if head["format"] != FORMAT:
        raise SpecError(f"{folder} has format {head['format']!r}; expected {FORMAT}.", next_step="Update philab.")
    refs = [ArtifactRef.model_validate(ref) for ref in head["artifacts"]]
    return FolderRun(
        id=UUID(head["id"]),
        name=head["name"],
        status=head["status"],
        spec=parse_asked(head["spec"]),
        provenance=Provenance.model_validate(head["provenance"]) if head.get("provenance") else None,
        result=parse_answer(head["result"]) if head.get("result") else None,
        error=head.get("error"),
        traceback=head.get("traceback"),
        items=tuple((row["key"], row["values"]) for row in _rows(folder / "items.jsonl")),
        metrics=tuple((row["name"], row["step"], row["value"]) for row in _rows(folder / "metrics.jsonl")),
        artifacts={ref.name: _checked(folder / "artifacts" / ref.name, ref) for ref in refs},
    )


def _checked(file: Path, ref: ArtifactRef) -> Path:
    try:
        actual = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as missing:
        raise StoreError(f"artefact {file} cannot be read: {missing.strerror}.") from missing
    if actual != ref.sha256:
        raise StoreError(f"artefact {file} has hash {actual[:12]}, but run.json says {ref.sha256[:12]}: it was changed or damaged.")
    return file


def _silent(fraction: float, message: str) -> None:
    """Nobody watches."""


def _refuse_used(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise Conflict(f"{folder} is a file; expected a folder.", next_step="Choose another one.")
    if not (folder / "run.json").is_file():
        if any(not file.name.startswith(".run.json.") for file in folder.iterdir()):  # one is left when a run is killed as it begins
            raise Conflict(f"{folder} holds something else than a run.", next_step="Choose an empty or new folder.")
        return
    if _head(folder).get("status") == "ok":
        raise Conflict(f"{folder} holds a finished run.", next_step="Choose another folder.")


def _unfinished(folder: Path) -> str | None:
    """Hash of the spec of the unfinished run in a folder; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    provenance = _head(folder).get("provenance")
    return str(provenance.get("spec_sha256")) if isinstance(provenance, dict) else "unknown"


def _head(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        head = None
    if not isinstance(head, dict):
        raise Conflict(f"{folder / 'run.json'} is not that of a run.", next_step="Choose another folder.")
    return head


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
