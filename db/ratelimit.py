"""How often somebody may ask: a generic cell rate limiter, one statement in Postgres, shared by all processes."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

_TAKE = text(
    """
    insert into rate_buckets as bucket (key, tat) values (:key, clock_timestamp() + :step)
    on conflict (key) do update set tat = greatest(bucket.tat, clock_timestamp()) + :step
        where greatest(bucket.tat, clock_timestamp()) + :step <= clock_timestamp() + :window
    returning 0.0
    """
)
_WAIT = text("select extract(epoch from tat + :step - :window - clock_timestamp()) from rate_buckets where key = :key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """So many requests in a row, then so many per minute.

    Attributes:
        name: part of the bucket's key.
        burst: requests that may come at once.
        per_minute: requests that become free again in a minute.
    """

    name: str
    burst: int
    per_minute: float

    @property
    def step(self) -> timedelta:
        """Time after which one more request is free."""
        return timedelta(minutes=1 / self.per_minute)

    @property
    def window(self) -> timedelta:
        """Time that a full burst uses up."""
        return self.burst * self.step


def wait_s(session: Session, limit: Limit, who: str) -> float:
    """Takes one request from somebody's bucket; 0 when it may pass, else the seconds to wait, and nothing is taken.

    Args:
        session: its own short transaction, so that a failed request counts too.
        limit: which limit.
        who: whose bucket, at most 150 characters.
    """
    values = {"key": f"{limit.name}:{who}"[:200], "step": limit.step, "window": limit.window}
    if session.execute(_TAKE, values).first() is not None:
        return 0.0
    left = session.scalar(_WAIT, values)
    return max(0.001, float(left or 0.0))


def forget_old(session: Session) -> None:
    """Removes buckets that are full again."""
    session.execute(text("delete from rate_buckets where tat < now() - interval '1 day'"))
