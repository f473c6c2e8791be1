"""Nobody chooses, nobody gets a shard twice, nothing gives out more than there is, and what expires comes back."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import schema
from db.connection import Database
from db.leases import MAX_OPEN, expire_due, get_lease, lease_next, my_leases, release, renew
from db.schema import WorkUnit
from db.submissions import submit
from db.tasks import get_task, set_status
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound
from engine.spec.base import Rows
from tests.community import SPEC, answer_for, join, lease_shard, make_task, send


def open_slots(session: Session) -> int:
    return session.scalar(select(func.sum(WorkUnit.n_open))) or 0


def age(session: Session, **by: float) -> None:
    """Makes every live lease older, as if time had passed."""
    session.execute(update(schema.Lease).values(expires_at=datetime.now(UTC) - timedelta(**by)))
    session.expire_all()


def test_a_lease_names_all_that_is_to_be_done(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada)
    lease = lease_shard(session, ada, task.id)
    unit = session.get_one(WorkUnit, lease.work_unit_id)
    assert lease.spec == SPEC.with_rows(Rows(start=unit.row_start, stop=unit.row_stop))
    assert (lease.spec_sha256, lease.task_spec_hash, lease.dataset_hash) == (lease.spec.sha256, task.spec_hash, task.dataset_hash)
    assert lease.expires_at - lease.leased_at == timedelta(seconds=3600)
    assert get_task(session, ada, task.id).status == "in_progress"
    assert open_slots(session) == 11


def test_asking_again_gives_the_same_shard(session: Session) -> None:
    ada = join(session, "ada")
    make_task(session, ada)
    assert lease_next(session, ada) == lease_next(session, ada)
    assert len(my_leases(session, ada)) == 1


def test_another_shard_can_be_asked_for_up_to_a_limit(session: Session) -> None:
    ada = join(session, "ada")
    make_task(session, ada, n_shards=30)
    shards = [lease_next(session, ada, another=True) for _ in range(MAX_OPEN)]
    assert len({lease.work_unit_id for lease in shards if lease}) == MAX_OPEN
    with pytest.raises(Conflict, match="the most that one person may"):
        lease_next(session, ada, another=True)


def test_the_most_urgent_task_is_worked_on_first(session: Session) -> None:
    ada = join(session, "ada")
    low, high = make_task(session, ada, priority=0, name="low"), make_task(session, ada, priority=3, name="high", n_shards=1)
    assert lease_shard(session, ada).task_id == high.id
    send(session, ada, answer_for(lease_shard(session, ada)))
    assert lease_shard(session, ada).task_id == low.id


def test_one_person_answers_a_shard_once(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada, n_shards=3, replicas=2)
    seen = []
    while (lease := lease_next(session, ada, task.id)) is not None:
        seen.append(lease.shard_no)
        send(session, ada, answer_for(lease))
    assert sorted(seen) == [0, 1, 2]


def test_shards_come_in_no_order_that_could_be_foreseen(session: Session) -> None:
    people = [join(session, f"person-{number}") for number in range(12)]
    make_task(session, people[0], n_shards=30, replicas=20)
    assert len({lease_shard(session, person).shard_no for person in people}) > 3


def test_archived_and_unknown_tasks_give_nothing(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada)
    set_status(session, ada, task.id, "archived")
    assert lease_next(session, ada, task.id) is None
    with pytest.raises(NotFound):
        lease_next(session, ada, uuid4())
    with pytest.raises(NotAllowed):
        lease_next(session, Viewer.visitor())


def test_a_released_shard_is_free_at_once(session: Session) -> None:
    ada, bob = join(session, "ada"), join(session, "bob")
    make_task(session, ada, n_shards=1, replicas=1)
    lease = lease_shard(session, ada)
    assert lease_next(session, bob) is None
    release(session, ada, lease.id)
    release(session, ada, lease.id)
    assert open_slots(session) == 1
    assert lease_shard(session, bob).work_unit_id == lease.work_unit_id


def test_what_expires_comes_back_and_cannot_be_renewed(session: Session) -> None:
    ada, bob = join(session, "ada"), join(session, "bob")
    make_task(session, ada, n_shards=1, replicas=1)
    lease = lease_shard(session, ada)
    age(session, seconds=1)
    assert expire_due(session) == 1
    assert expire_due(session) == 0
    assert get_lease(session, ada, lease.id).state == "expired"
    with pytest.raises(Conflict, match="expired"):
        renew(session, ada, lease.id)
    later = lease_shard(session, bob)
    assert later.fence > lease.fence


def test_renewing_extends_and_belongs_to_its_holder(session: Session) -> None:
    ada, bob = join(session, "ada"), join(session, "bob")
    make_task(session, ada, lease_ttl_s=100)
    lease = lease_shard(session, ada)
    assert renew(session, ada, lease.id).expires_at > lease.expires_at
    for attempt in (renew, release, get_lease):
        with pytest.raises(NotFound):
            attempt(session, bob, lease.id)


@pytest.mark.parametrize("n_shards", [5, *[pytest.param(30, marks=pytest.mark.torture, id=f"30, round {n}") for n in range(20)]])
def test_many_at_once_get_no_more_than_there_is(own_database: Database, n_shards: int) -> None:
    """16 people ask at the same time, again and again, over their own connections; every slot is given out exactly once."""
    with own_database.session() as session:
        people = [join(session, f"person-{number}") for number in range(16)]
        make_task(session, people[0], n_shards=n_shards, replicas=3)

    def work(person: Viewer) -> list[tuple[int, Viewer]]:
        taken, patience = [], 50
        while True:
            with own_database.session() as session:
                lease = lease_next(session, person)
                if lease is None:  # nothing left, or all that is left is being given to somebody at this moment
                    patience -= 1
                    if not patience:
                        return taken
                    time.sleep(0.02)
                    continue
                sent = answer_for(lease)
                submit(session, person, sent, idempotency_key=uuid4().hex, raw=sent.model_dump_json().encode())
                taken.append((lease.shard_no, person))

    with ThreadPoolExecutor(8) as pool:
        taken = [entry for entries in pool.map(work, people) for entry in entries]
    assert Counter(shard for shard, _ in taken) == dict.fromkeys(range(n_shards), 3)
    assert len(set(taken)) == 3 * n_shards
    with own_database.session() as session:
        assert (
            session.scalar(select(func.count()).select_from(schema.Submission).where(schema.Submission.verdict == "accepted"))
            == 3 * n_shards
        )
        assert {unit.status for unit in session.scalars(select(WorkUnit))} == {"satisfied"}
        assert open_slots(session) == 0


def test_two_machines_of_one_person_share_a_shard(own_database: Database) -> None:
    with own_database.session() as session:
        ada = join(session, "ada")
        make_task(session, ada, n_shards=4)

    def ask(_: int) -> object:
        with own_database.session() as session:
            lease = lease_next(session, ada)
            return lease and lease.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
