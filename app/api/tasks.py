"""Prompt cards, and the next piece of work."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app.api.access import Asked
from app.api.leases import ShardToRun, next_shard
from app.api.limits import MAX_LIST
from db.tasks import TaskCard, TaskDetail, TaskDraft, create_task, get_task, list_tasks, set_status
from engine.spec.base import Frozen

router = APIRouter(tags=["tasks"])

TaskStatus = Literal["draft", "open", "in_progress", "completed", "archived"]


class StatusWish(Frozen):
    """What a task should become."""

    status: Literal["open", "archived"]


@router.get("/tasks")
def tasks(
    asked: Asked,
    status: TaskStatus | None = None,
    priority: Annotated[int | None, Query(ge=-1000, le=1000, description="Only tasks of at least this priority.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50,
) -> list[TaskCard]:
    """Tasks, the most urgent first; archived ones only when asked for."""
    with asked.turn() as turn:
        return list_tasks(turn.session, turn.viewer, status, limit, min_priority=priority)


@router.post("/tasks", status_code=201)
def create(asked: Asked, draft: TaskDraft) -> TaskDetail:
    """Makes a task. The server computes the hashes, cuts the rows into shards, and opens it or keeps it as a draft for review."""
    with asked.own_turn() as turn:
        return create_task(turn.session, turn.viewer, draft, settings=asked.services.settings)


# Before the route of one task, or 'next' would be taken for an id.
@router.get("/tasks/next", response_model=ShardToRun, responses={204: {"description": "No shard for you right now."}})
def next_task(asked: Asked, response: Response, task_id: UUID | None = None) -> Any:
    """The shard to work on now: the one that the caller holds, else a new one of the most urgent task. Asking again takes no second."""
    shard = next_shard(asked, response, task_id)
    return shard or Response(status_code=204, headers={"Retry-After": response.headers["Retry-After"]})


@router.get("/tasks/{task_id}")
def task(asked: Asked, task_id: UUID) -> TaskDetail:
    """One task with its spec."""
    with asked.turn() as turn:
        return get_task(turn.session, turn.viewer, task_id)


@router.patch("/tasks/{task_id}")
def change(asked: Asked, task_id: UUID, wish: StatusWish) -> TaskDetail:
    """Opens a draft, or archives a task."""
    with asked.own_turn() as turn:
        return set_status(turn.session, turn.viewer, task_id, wish.status)
