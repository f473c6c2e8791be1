"""Shards: take one, keep it, give it back."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import Field

from app.api.access import Asked
from db.leases import Lease, lease_next, my_leases, release, renew
from engine.spec import spec_to_yaml
from engine.spec.base import Frozen

router = APIRouter(tags=["leases"])

COME_BACK_S = "60"


class LeaseWish(Frozen):
    """What kind of shard is wanted."""

    task_id: Annotated[UUID | None, Field(description="Only shards of this task.")] = None
    another: Annotated[bool, Field(description="Take a further shard although one is held.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardToRun:
    """A leased shard with all that is needed to answer it.

    Attributes:
        name: of the task.
        spec: exactly what is to be run: the task's spec with the shard's rows.
        spec_yaml: the same as YAML.
        spec_sha256: its hash, named in the provenance of the run.
        spec_hash: hash of the task's spec, named in the metadata of the submission.
        ttl_s: seconds that the lease lasts without a heartbeat.
    """

    lease_id: UUID
    task_id: UUID
    name: str
    shard_no: int
    n_shards: int
    spec: dict[str, Any]
    spec_yaml: str
    spec_sha256: str
    spec_hash: str
    dataset_name: str
    dataset_hash: str
    state: str
    fence: int
    leased_at: datetime
    expires_at: datetime
    ttl_s: int


def shard_to_run(lease: Lease) -> ShardToRun:
    """A lease as it travels."""
    return ShardToRun(
        lease_id=lease.id,
        task_id=lease.task_id,
        name=lease.task_name,
        shard_no=lease.shard_no,
        n_shards=lease.n_shards,
        spec=lease.spec.model_dump(mode="json"),
        spec_yaml=spec_to_yaml(lease.spec, name=lease.task_name),
        spec_sha256=lease.spec_sha256,
        spec_hash=lease.task_spec_hash,
        dataset_name=lease.dataset_name,
        dataset_hash=lease.dataset_hash,
        state=lease.state,
        fence=lease.fence,
        leased_at=lease.leased_at,
        expires_at=lease.expires_at,
        ttl_s=lease.lease_ttl_s,
    )


def next_shard(asked: Asked, response: Response, task_id: UUID | None, *, another: bool = False) -> ShardToRun | None:
    """The shard to work on; without one the answer is 204 with the time to come back."""
    with asked.own_turn() as turn:
        lease = lease_next(turn.session, turn.viewer, task_id, another=another)
        shard = shard_to_run(lease) if lease else None
    if shard is None:
        response.status_code = 204
        response.headers["Retry-After"] = COME_BACK_S
    return shard


@router.post("/leases", status_code=201, response_model=ShardToRun, responses={204: {"description": "No shard for you right now."}})
def take(asked: Asked, response: Response, wish: LeaseWish | None = None) -> Any:
    """Leases a shard, or gives the one that is held already."""
    wish = wish or LeaseWish()
    return next_shard(asked, response, wish.task_id, another=wish.another) or _nothing(response)


@router.get("/leases")
def held(asked: Asked) -> list[ShardToRun]:
    """The shards that the caller holds."""
    with asked.own_turn() as turn:
        return [shard_to_run(lease) for lease in my_leases(turn.session, turn.viewer)]


@router.post("/leases/{lease_id}/heartbeat")
def heartbeat(asked: Asked, lease_id: UUID) -> ShardToRun:
    """Extends a live lease."""
    with asked.own_turn() as turn:
        return shard_to_run(renew(turn.session, turn.viewer, lease_id))


@router.delete("/leases/{lease_id}", status_code=204)
def give_back(asked: Asked, lease_id: UUID) -> None:
    """Gives a shard back, so that somebody else gets it at once."""
    with asked.own_turn() as turn:
        release(turn.session, turn.viewer, lease_id)


def _nothing(response: Response) -> Response:
    return Response(status_code=204, headers={"Retry-After": response.headers["Retry-After"]})
