"""What unfinished runs have measured: bytes in the store, by hash, with the hash on the run. Only the newest state of a run is kept."""

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, exists, func, select, text, update
from sqlalchemy.orm import Session

from db.schema import Artifact, Run
from engine.store import Store


def replace(session: Session, sha256: str | None, mine: Sequence[ColumnElement[bool]]) -> str | None:
    """Puts another state on a run, or none; returns the hash of the one before, which somebody has to `drop`."""
    before = session.execute(select(Run.id, Run.state_sha256).where(*mine).with_for_update()).first()
    if before is None:
        return None
    session.execute(update(Run).where(Run.id == before.id).values(state_sha256=sha256, heartbeat_at=func.now()))
    return before.state_sha256


def drop(session: Session, store: Store, hashes: Iterable[str | None]) -> None:
    """Removes states from the store that no run refers to.

    Two runs of one spec can have the same. Should another run take up a state in the moment in which it is removed here, that run finds
    nothing to go on from, and starts at the beginning.

    Raises:
        StoreError: one could not be removed.
    """
    for sha256 in {one for one in hashes if one is not None}:
        if not session.scalar(select(exists().where(Run.state_sha256 == sha256) | exists().where(Artifact.sha256 == sha256))):
            store.remove(sha256)


def forget_old(session: Session, *, days: int = 30) -> list[str]:
    """Takes their states from runs that failed or were cancelled so long ago; returns the hashes, which somebody has to `drop`."""
    given_up = select(Run.id, Run.state_sha256).where(
        Run.status.in_(("failed", "cancelled")),
        Run.state_sha256.is_not(None),
        Run.finished_at < func.now() - text("make_interval(days => :days)").bindparams(days=days),
    )
    found = session.execute(given_up.with_for_update(skip_locked=True)).all()
    session.execute(update(Run).where(Run.id.in_([row.id for row in found])).values(state_sha256=None))
    return [row.state_sha256 for row in found]
