"""The limiter holds over connections, and lets people in again."""

import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.connection import Database
from db.ratelimit import Limit, forget_old, wait_s

TEN = Limit(name="test", burst=10, per_minute=10)


def test_exactly_the_burst_passes_of_many_at_once(own_database: Database) -> None:
    def ask(_: int) -> float:
        with own_database.session() as session:
            return wait_s(session, TEN, "ada")

    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(ask, range(100)))
    assert sum(wait == 0 for wait in waits) == 10
    assert all(0 < wait <= 6 for wait in waits if wait)


def test_everybody_has_their_own_bucket(session: Session) -> None:
    for who in ("ada", "bob"):
        assert [wait_s(session, TEN, who) == 0 for _ in range(11)] == [True] * 10 + [False]


def test_who_waits_as_told_may_pass(session: Session) -> None:
    quick = Limit(name="quick", burst=2, per_minute=600)
    assert [wait_s(session, quick, "ada") == 0 for _ in range(2)] == [True, True]
    wait = wait_s(session, quick, "ada")
    assert 0 < wait <= 0.1
    time.sleep(wait)
    assert wait_s(session, quick, "ada") == 0


def test_full_buckets_are_forgotten(session: Session) -> None:
    wait_s(session, TEN, "ada")
    session.execute(text("update rate_buckets set tat = now() - interval '2 days'"))
    forget_old(session)
    assert session.scalar(text("select count(*) from rate_buckets")) == 0
