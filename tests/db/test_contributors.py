"""Names, keys, roles, and a leaderboard that nobody can write themselves onto."""

import stat
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.contributors import authenticate, ensure_owner, leaderboard, profile, register, set_role
from db.keys import key_parts, new_key, read_pepper, secret_file
from db.schema import ApiKey, Contributor
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError
from engine.settings import Settings
from tests.community import PEPPER, answer_for, fill, join, lease_shard, make_task, send


def test_a_key_opens_the_door_of_its_person_only(session: Session) -> None:
    ada = register(session, username="ada", email="ada@example.org", pepper=PEPPER)
    bob = register(session, username="bob", email=None, pepper=PEPPER)
    assert authenticate(session, ada.api_key, PEPPER) == Viewer(contributor_id=ada.contributor_id, role="contributor")
    assert authenticate(session, bob.api_key, PEPPER).contributor_id == bob.contributor_id
    with pytest.raises(NotAllowed):
        authenticate(session, ada.api_key, b"another pepper")


def test_the_secret_is_nowhere_in_the_database(session: Session) -> None:
    ada = register(session, username="ada", email=None, pepper=PEPPER)
    parts = key_parts(ada.api_key)
    assert parts is not None
    row = session.scalars(select(ApiKey)).one()
    assert row.prefix == parts.prefix
    assert parts.secret.encode() not in row.secret_hmac


def mistyped(key: str) -> str:
    return key[:20] + ("a" if key[20] != "a" else "b") + key[21:]


@pytest.mark.parametrize("change", [mistyped, lambda _: "", lambda _: "plk_x", lambda _: new_key(), lambda key: f"{key}é"])
def test_every_wrong_key_gets_the_same_answer(session: Session, change: Callable[[str], str]) -> None:
    ada = register(session, username="ada", email=None, pepper=PEPPER)
    with pytest.raises(NotAllowed, match="the API key is not valid here"):
        authenticate(session, change(ada.api_key), PEPPER)


@pytest.mark.parametrize("values", [{"revoked_at": "now()"}, {"expires_at": "2001-01-01"}])
def test_revoked_and_expired_keys_are_wrong_keys(session: Session, values: dict[str, str]) -> None:
    ada = register(session, username="ada", email=None, pepper=PEPPER)
    session.execute(update(ApiKey).values(values))
    with pytest.raises(NotAllowed):
        authenticate(session, ada.api_key, PEPPER)


def test_suspended_people_have_no_key(session: Session) -> None:
    ada = register(session, username="ada", email=None, pepper=PEPPER)
    session.execute(update(Contributor).values(status="suspended"))
    with pytest.raises(NotAllowed):
        authenticate(session, ada.api_key, PEPPER)


@pytest.mark.parametrize("name", ["ab", "a" * 33, "-ada", "a b c", "ada<script>", "ada\x00", "аda", "../etc"])
def test_names_that_are_none(session: Session, name: str) -> None:
    with pytest.raises(SpecError, match="3 to 32 letters"):
        register(session, username=name, email=None, pepper=PEPPER)


@pytest.mark.parametrize("email", ["ada", "ada@", "@example.org", "a b@example.org", "ada@example", "a" * 250 + "@example.org"])
def test_addresses_that_are_none(session: Session, email: str) -> None:
    with pytest.raises(SpecError, match="e-mail"):
        register(session, username="ada", email=email, pepper=PEPPER)


@pytest.mark.parametrize("name", ["ADA", "ａｄａ", "owner", "Admin"])
def test_taken_and_reserved_names_conflict(session: Session, name: str) -> None:
    register(session, username="ada", email="ada@example.org", pepper=PEPPER)
    with pytest.raises(Conflict):
        register(session, username=name, email=None, pepper=PEPPER)
    with pytest.raises(Conflict):
        register(session, username="other", email="ADA@example.org", pepper=PEPPER)


def test_the_owner_is_made_once_and_their_key_is_for_them_alone(session: Session, own_settings: Settings) -> None:
    first = ensure_owner(session, own_settings)
    again = ensure_owner(session, own_settings)
    assert first == again
    assert first.is_owner
    assert first.can("administer")
    file = own_settings.config_dir / "owner-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((own_settings.data_dir / "secret-key").stat().st_mode) == 0o600
    key = file.read_text().strip()
    assert authenticate(session, key, read_pepper(own_settings)).contributor_id == first.contributor_id


def test_a_lost_key_file_gives_the_owner_a_new_key(session: Session, own_settings: Settings) -> None:
    owner = ensure_owner(session, own_settings)
    (own_settings.config_dir / "owner-key").unlink()
    ensure_owner(session, own_settings)
    key = (own_settings.config_dir / "owner-key").read_text().strip()
    assert authenticate(session, key, read_pepper(own_settings)).contributor_id == owner.contributor_id


def test_the_first_process_decides_what_is_in_a_secret_file(own_settings: Settings) -> None:
    file = own_settings.config_dir / "secret"
    assert secret_file(file, "one") == secret_file(file, "two") == "one"
    assert [entry.name for entry in file.parent.iterdir()] == ["secret"]


def test_the_leaderboard_counts_accepted_runs_only(session: Session) -> None:
    people = [join(session, name) for name in ("ada", "bob", "eve")]
    task = make_task(session, people[0], n_shards=3)
    lazy = join(session, "lazy")
    lease = lease_shard(session, people[2])
    send(session, people[2], answer_for(lease))
    assert leaderboard(session) == []
    fill(session, people[:2], task.id)
    board = leaderboard(session)
    assert {standing.username for standing in board} <= {"ada", "bob", "eve"}
    assert sum(standing.runs_completed for standing in board) == 6
    assert [standing.rank for standing in board] == list(range(1, len(board) + 1))
    assert [s.runs_completed for s in board] == sorted((s.runs_completed for s in board), reverse=True)
    assert profile(session, lazy.contributor_id or lease.id).runs_completed == 0


def test_told_durations_do_not_feed_the_leaderboard_beyond_the_clock(session: Session) -> None:
    people = [join(session, name) for name in ("ada", "bob")]
    task = make_task(session, people[0], n_shards=1)
    for person in people:
        lease = lease_shard(session, person, task.id)
        send(session, person, answer_for(lease, duration_s=50.0))  # within the slack of the clocks, but not lived through
    by_time = leaderboard(session, "compute_time")
    assert all(standing.compute_donated_seconds < 50 for standing in by_time)
    assert all(standing.runs_completed == 1 for standing in by_time)


def test_a_profile_has_badges_and_no_address(session: Session) -> None:
    people = [join(session, name) for name in ("ada", "bob")]
    fill(session, people, make_task(session, people[0]).id)
    shown = profile(session, people[0].contributor_id)  # type: ignore[arg-type]
    assert shown.runs_completed == 6
    assert [badge.id for badge in shown.badges] == ["runs_1"]
    assert "example.org" not in repr(shown)


def test_only_admins_give_roles_and_the_last_one_stays(session: Session, own_settings: Settings) -> None:
    owner, ada = ensure_owner(session, own_settings), join(session, "ada")
    assert ada.contributor_id is not None
    assert owner.contributor_id is not None
    with pytest.raises(NotAllowed):
        set_role(session, ada, ada.contributor_id, "admin")
    with pytest.raises(Conflict, match="last admin"):
        set_role(session, owner, owner.contributor_id, "contributor")
    with pytest.raises(SpecError):
        set_role(session, owner, ada.contributor_id, "emperor")
    set_role(session, owner, ada.contributor_id, "admin")
    set_role(session, owner, owner.contributor_id, "contributor")
    with pytest.raises(NotFound):
        profile(session, UUID(int=1))
