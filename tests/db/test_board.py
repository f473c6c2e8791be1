"""What overviews tell: shards, counts, and what of one's own is still under way."""

from uuid import uuid4

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session

from db import board, schema
from db.leases import lease_idle, left_for
from db.runs import create_run
from db.viewer import Viewer
from engine.errors import NotAllowed, NotFound
from tests.community import answer_for, join, lease_shard, make_task, send


def test_shards_tell_what_is_accepted_waiting_and_leased(session: Session) -> None:
    ada, bela = join(session, "ada"), join(session, "bela")
    task = make_task(session, ada, n_shards=2, replicas=2)
    for _ in range(2):
        send(session, ada, answer_for(lease_shard(session, ada)))
    send(session, bela, answer_for(lease_shard(session, bela)))
    lease_shard(session, bela)
    told = sorted((shard.accepted, shard.waiting, shard.leased, shard.status) for shard in board.shards(session, ada, task.id))
    assert told == [(0, 1, 1, "open"), (2, 0, 0, "satisfied")]
    assert [(shard.row_start, shard.row_stop) for shard in board.shards(session, ada, task.id)] == [(0, 30), (30, 60)]
    with pytest.raises(NotFound):
        board.shards(session, ada, uuid4())


def test_counts_follow_what_the_viewer_may_see(session: Session) -> None:
    ada, bela = join(session, "ada"), join(session, "bela")
    make_task(session, ada, n_shards=1, replicas=1)
    before = board.counts(session, bela)
    send(session, ada, answer_for(lease := lease_shard(session, ada)))
    create_run(session, ada, lease.spec)
    after = board.counts(session, bela)
    assert (after.runs - before.runs, after.accepted - before.accepted, after.contributors - before.contributors) == (1, 1, 1)
    assert board.counts(session, ada).runs == after.runs + 1


def test_an_idle_shard_is_one_that_no_run_works_on(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada, n_shards=3, replicas=1)
    assert left_for(session, ada, task.id) == 3
    first = lease_idle(session, ada, task.id)
    assert first is not None
    assert lease_idle(session, ada, task.id) == first
    assert left_for(session, ada, task.id) == 3
    create_run(session, ada, first.spec, task_id=task.id, lease_id=first.id)
    second = lease_idle(session, ada, task.id)
    assert second is not None
    assert second.id != first.id
    assert left_for(session, ada, task.id) == 2
    with pytest.raises(NotAllowed):
        left_for(session, Viewer.visitor(), task.id)


def test_nothing_is_left_of_a_task_that_one_has_answered(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada, n_shards=1, replicas=2)
    send(session, ada, answer_for(lease_shard(session, ada)))
    assert left_for(session, ada, task.id) == 0
    assert lease_idle(session, ada, task.id) is None


def test_a_run_is_under_way_until_its_task_has_it(session: Session) -> None:
    ada, bela = join(session, "ada"), join(session, "bela")
    task = make_task(session, ada, n_shards=1, replicas=2)
    lease = lease_shard(session, ada)
    run = create_run(session, ada, lease.spec, task_id=task.id, lease_id=lease.id)
    assert [one.id for one in board.under_way(session, ada, task.id)] == [run.id]
    assert not board.under_way(session, bela, task.id)
    assert not board.under_way(session, Viewer.visitor(), task.id)
    done = update(schema.Run).where(schema.Run.id == run.id).values(status="ok", result={}, finished_at=func.now())
    session.execute(done)
    assert [one.id for one in board.under_way(session, ada, task.id)] == [run.id]
    session.execute(done.values(finished_at=func.now() - 2 * board.SENDING))
    assert not board.under_way(session, ada, task.id)


def test_a_task_is_listed_once_somebody_has_sent_a_run(session: Session) -> None:
    ada = join(session, "ada")
    task = make_task(session, ada, name="Asked")
    assert task.id not in dict(board.answered_tasks(session, ada))
    send(session, ada, answer_for(lease_shard(session, ada, task.id)))
    assert dict(board.answered_tasks(session, ada))[task.id] == "Asked"
