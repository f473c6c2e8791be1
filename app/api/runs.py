"""Runs of this lab: list, look, start, cancel, fetch files."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from app.api.access import Asked
from app.api.limits import MAX_LIST
from db import runs as db_runs
from db.allowed import check_allowed
from db.schema import Run
from db.viewer import Viewer
from db.work import start_run
from engine.errors import NotFound, SpecError
from engine.presets import apply_preset
from engine.spec import AnySpec, parse_spec, parse_text
from engine.spec.base import Frozen

router = APIRouter(tags=["runs"])

RunStatus = Literal["queued", "running", "ok", "failed", "cancelled"]

_CARD = (
    *("id", "kind", "name", "status", "visibility", "owner_id", "spec_sha256", "question_sha256", "preset", "task_id", "progress"),
    *("progress_message", "cancel_requested", "error", "tags", "created_at", "started_at", "finished_at"),
)


class RunWish(Frozen):
    """What should be run."""

    spec: Annotated[dict[str, Any] | None, Field(description="The spec as JSON.")] = None
    spec_yaml: Annotated[str | None, Field(max_length=65_536, description="The spec as YAML or JSON text, instead of 'spec'.")] = None
    name: Annotated[str, Field(max_length=200)] = ""
    preset: Annotated[str | None, Field(max_length=64, description="Hardware tier whose caps become part of the spec.")] = None
    visibility: Literal["private", "unlisted", "public"] = "private"
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=40)], ...], Field(max_length=20)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCard:
    """A run as lists show it."""

    id: UUID
    kind: str
    name: str
    status: RunStatus
    visibility: str
    owner_id: UUID | None
    spec_sha256: str
    question_sha256: str
    preset: str | None
    task_id: UUID | None
    progress: float
    progress_message: str
    cancel_requested: bool
    error: str | None
    tags: list[str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCard:
    """A file of a run."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunCard):
    """A run with its spec, result and files. The traceback of a failed run is its owner's business."""

    note: str
    spec: dict[str, Any]
    provenance: dict[str, Any] | None
    result: dict[str, Any] | None
    traceback: str | None
    artifacts: tuple[FileCard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """A page of runs; `next_cursor` continues after the last one."""

    items: list[RunCard]
    total: int
    next_cursor: str | None


@router.get("/runs")
def runs(
    asked: Asked,
    status: RunStatus | None = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    task_id: UUID | None = None,
    mine: bool = False,
    text: Annotated[str | None, Query(max_length=200, description="Part of name, note or model.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> RunPage:
    """Runs that the caller may see, newest first."""
    wanted = db_runs.RunFilter(status=status, kind=kind, mine=mine, task_id=task_id, text=text)
    with asked.turn() as turn:
        page = db_runs.list_runs(turn.session, turn.viewer, wanted, limit=limit, cursor=cursor)
        return RunPage(items=[RunCard(**_card(run)) for run in page.rows], total=page.total, next_cursor=page.next_cursor)


@router.post("/runs", status_code=201)
def start(asked: Asked, wish: RunWish) -> RunCard:
    """Queues a run for the workers of this instance."""
    settings = asked.services.settings
    spec = _spec(wish, settings.default_model)
    with asked.own_turn() as turn:
        check_allowed(spec, turn.viewer, settings)
        made = start_run(turn.session, turn.viewer, spec, name=wish.name, preset=wish.preset, visibility=wish.visibility, tags=wish.tags)
        return RunCard(**_card(made))


@router.get("/runs/{run_id}")
def run(asked: Asked, run_id: UUID) -> RunDetail:
    """One run with its result."""
    with asked.turn() as turn:
        found = db_runs.get_run(turn.session, turn.viewer, run_id)
        files = db_runs.run_artifacts(turn.session, turn.viewer, run_id)
        return RunDetail(
            **_card(found),
            note=found.note,
            spec=found.spec,
            provenance=found.provenance,
            result=found.result,
            traceback=found.traceback if _owns(turn.viewer, found) else None,
            artifacts=tuple(
                FileCard(name=file.name, sha256=file.sha256, size_bytes=file.size_bytes, media_type=file.media_type) for file in files
            ),
        )


@router.post("/runs/{run_id}/cancel")
def cancel(asked: Asked, run_id: UUID) -> RunCard:
    """Asks a run to stop."""
    with asked.own_turn() as turn:
        return RunCard(**_card(db_runs.request_cancel(turn.session, turn.viewer, run_id)))


@router.get("/runs/{run_id}/artifacts/{name}", response_class=Response, responses={200: {"content": {"application/octet-stream": {}}}})
def artifact(asked: Asked, run_id: UUID, name: Annotated[str, Path(max_length=120)]) -> Response:
    """A file of a run, to be saved: browsers do not show it."""
    with asked.turn() as turn:
        files = db_runs.run_artifacts(turn.session, turn.viewer, run_id)
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise NotFound(f"run {run_id} has no file '{name}'.", next_step="See the run's list of files.")
    headers = {
        "Content-Disposition": f'attachment; filename="{found.name}"',
        "Content-Security-Policy": "sandbox",
        "ETag": f'"{found.sha256}"',
    }
    return Response(asked.services.store.get(found.sha256), media_type=found.media_type, headers=headers)


def _spec(wish: RunWish, default_model: str) -> AnySpec:
    if (wish.spec is None) == (wish.spec_yaml is None):
        raise SpecError("a run needs exactly one of 'spec' and 'spec_yaml'.")
    spec = parse_spec(wish.spec) if wish.spec is not None else parse_text(wish.spec_yaml or "", default_model=default_model).spec
    return apply_preset(spec, wish.preset) if wish.preset else spec


def _card(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in _CARD}


def _owns(viewer: Viewer, run: Run) -> bool:
    return viewer.is_admin or (viewer.contributor_id is not None and viewer.contributor_id == run.owner_id)
