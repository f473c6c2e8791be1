"""Runs that were kept in folders come into the database, once however often they are imported."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.orm import Session

from db.schema import Artifact, Run, RunItem, RunMetric
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed
from engine.folder import FolderRun, read_folder
from engine.result import ArtifactRef
from engine.store import Store

ENDED = ("ok", "failed", "cancelled")
MEDIA_TYPES = {".safetensors": "application/octet-stream", ".json": "application/json", ".csv": "text/csv", ".png": "image/png"}


def import_folder(session: Session, viewer: Viewer, folder: Path, *, store: Store) -> Run:
    """The run of a folder, as a private run of the viewer; the one that is there already when it was imported before.

    Args:
        session: the transaction; the run is whole in it, or not at all.
        viewer: who the run will belong to.
        folder: made by `philab run --out`.
        store: takes the run's artefacts.

    Raises:
        NotAllowed: the viewer may not have runs, or somebody else imported this one.
        NotFound: the folder holds no run.
        Conflict: the run is not over yet.
        SpecError: run.json is not one of ours.
        StoreError: an artefact is missing or damaged, or cannot be stored.
    """
    if not viewer.can("run"):
        raise NotAllowed("visitors cannot import runs.", next_step="Sign in with a key.")
    kept = read_folder(folder)
    if kept.status not in ENDED:
        raise Conflict(f"the run in {folder} is {kept.status}.", next_step="Import it when it is over.")
    known = session.get(Run, kept.id)
    if known is not None:
        return _mine(known, viewer, folder)
    run = _run(kept, viewer)
    session.add(run)
    session.flush()
    _add_rows(session, kept, store)
    session.refresh(run)
    return run


def _mine(known: Run, viewer: Viewer, folder: Path) -> Run:
    if not viewer.is_admin and known.owner_id != viewer.contributor_id:
        raise NotAllowed(f"the run in {folder} was imported by somebody else.")
    return known


def _run(kept: FolderRun, viewer: Viewer) -> Run:
    provenance = kept.provenance
    started = provenance.started_at if provenance else None
    duration_s = provenance.duration_s if provenance else None
    return Run(
        id=kept.id,
        owner_id=viewer.contributor_id,
        kind=kept.spec.kind,
        name=kept.name[:200],
        status=kept.status,
        spec=kept.spec.model_dump(mode="json"),
        spec_sha256=kept.spec.sha256,
        question_sha256=kept.spec.question_sha256,
        preset=provenance.preset if provenance else None,
        progress=1.0 if kept.status == "ok" else 0.0,
        provenance=provenance.model_dump(mode="json") if provenance else None,
        result=kept.result.model_dump(mode="json") if kept.result else None,
        error=kept.error,
        traceback=kept.traceback,
        started_at=started,
        finished_at=started + timedelta(seconds=duration_s) if started and duration_s is not None else None,
        tags=["imported"],
    )


def _add_rows(session: Session, kept: FolderRun, store: Store) -> None:
    items = [{"run_id": kept.id, "key": key, "position": at, "values": values} for at, (key, values) in enumerate(kept.items)]
    metrics = [{"run_id": kept.id, "name": name, "step": step, "value": value} for name, step, value in kept.metrics]
    artifacts = [{"run_id": kept.id, **_stored(name, file, store).model_dump()} for name, file in kept.artifacts.items()]
    for table, rows in ((RunItem, items), (RunMetric, metrics), (Artifact, artifacts)):
        if rows:
            session.execute(insert(table), rows)


def _stored(name: str, file: Path, store: Store) -> ArtifactRef:
    data = file.read_bytes()
    media_type = MEDIA_TYPES.get(file.suffix, "application/octet-stream")
    return ArtifactRef(name=name, sha256=store.put(data), size_bytes=len(data), media_type=media_type)
