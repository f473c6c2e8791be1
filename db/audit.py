"""Who did what, when: append-only rows, each carrying the hash of the one before it."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from db.schema import Audit

FIRST = "0" * 64
"""What the first row names as the hash before it."""

_LOCK = 0x70_68_69_6C_61_62_01  # "philab", 1: one writer of the chain at a time


def record(session: Session, actor_id: UUID | None, action: str, subject: str, data: Mapping[str, Any] | None = None) -> None:
    """Appends one row. Called last in a transaction, for the chain has one writer at a time until the commit.

    Args:
        session: the transaction of what is recorded: both happen, or neither.
        actor_id: who did it; None for the system itself.
        action: short verb, `snake_case`.
        subject: what it was done to, as `kind:id`.
        data: JSON-ready details, never a secret.
    """
    session.flush()
    session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    at = datetime.now(UTC)
    previous = session.scalar(select(Audit.hash).order_by(Audit.seq.desc()).limit(1)) or FIRST
    values = dict(data or {})
    digest = _digest(previous, at=at, actor_id=actor_id, action=action, subject=subject, data=values)
    session.add(Audit(at=at, actor_id=actor_id, action=action, subject=subject, data=values, prev_hash=previous, hash=digest))
    session.flush()


def broken_at(session: Session) -> int | None:
    """The number of the first row whose hash does not follow from the row before it; None while the chain holds."""
    previous = FIRST
    with closing(session.scalars(select(Audit).order_by(Audit.seq).execution_options(yield_per=1000))) as rows:
        for row in rows:
            digest = _digest(previous, at=row.at, actor_id=row.actor_id, action=row.action, subject=row.subject, data=row.data)
            if (row.prev_hash, row.hash) != (previous, digest):
                return row.seq
            previous = row.hash
    return None


def key_lock(session: Session, *parts: object) -> None:
    """Waits until no other transaction holds the same words; let go of at the end of this one."""
    name = ":".join(str(part) for part in parts)
    session.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def _digest(previous: str, *, at: datetime, actor_id: UUID | None, action: str, subject: str, data: Mapping[str, Any]) -> str:
    body = {
        "prev": previous,
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": str(actor_id) if actor_id else None,
        "action": action,
        "subject": subject,
        "data": dict(data),
    }
    return hashlib.sha256(rfc8785.dumps(body)).hexdigest()
