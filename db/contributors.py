"""Who contributes: registration, keys, roles, and what people have done, which is always counted and never told by themselves."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db import audit
from db.keys import key_hmac, key_parts, new_key, read_pepper, same, secret_file
from db.schema import ROLES, ApiKey, Contributor, Submission
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError, StoreError
from engine.settings import Settings

SortBy = Literal["runs", "compute_time"]

OWNER = "owner"
RESERVED = frozenset({OWNER, "admin", "philab", "root", "system"})
_USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,31}")
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,185}\.[^@\s\x00-\x1f.]{1,63}")
_KEY_USE_STEP = timedelta(minutes=5)  # last_used_at is written at most this often


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A new contributor, with the key that is shown this once."""

    contributor_id: UUID
    username: str
    api_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One line of the leaderboard. All of it is counted from accepted submissions."""

    rank: int
    id: UUID
    username: str
    role: str
    runs_completed: int
    compute_donated_seconds: float
    tasks: int
    last_run_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """Something that a contributor earned, and by what."""

    id: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What everybody may know of a contributor; the e-mail address is not among it."""

    id: UUID
    username: str
    role: str
    created_at: datetime
    runs_completed: int
    runs_waiting: int
    runs_refused: int
    compute_donated_seconds: float
    tasks: int
    hardware_classes: int
    badges: tuple[Badge, ...]


def register(
    session: Session, *, username: str, email: str | None, pepper: bytes, tags: Sequence[str] = (), role: str = "contributor"
) -> Registered:
    """A new contributor with a first key.

    Raises:
        SpecError: the name or the address is not one.
        Conflict: one of them is taken.
    """
    name, address = _checked_name(username), _checked_email(email)
    person = Contributor(username=name, email=address, tags=list(tags), role=role)
    try:
        with session.begin_nested():
            session.add(person)
    except IntegrityError as taken:
        raise Conflict(f"the name '{name}' or the e-mail address is taken already.", next_step="Choose another name.") from taken
    key = add_key(session, person.id, pepper=pepper)
    audit.record(session, person.id, "contributor_registered", f"contributor:{person.id}", {"role": role})
    return Registered(contributor_id=person.id, username=name, api_key=key)


def add_key(session: Session, contributor_id: UUID, *, pepper: bytes, name: str = "default") -> str:
    """A further key of a contributor, shown this once."""
    key = new_key()
    _keep_key(session, contributor_id, key, pepper=pepper, name=name)
    return key


def authenticate(session: Session, key: str, pepper: bytes) -> Viewer:
    """The person whose key this is.

    Raises:
        NotAllowed: it is no key, or is revoked or expired, or the person is suspended. The text is the same for all.
    """
    parts = key_parts(key)
    row = session.execute(_active_key(parts.prefix)).one_or_none() if parts else None
    if parts is None or row is None or not same(row.ApiKey.secret_hmac, key_hmac(parts.secret, pepper)):
        raise NotAllowed("the API key is not valid here.", next_step="Check the X-API-Key header, or register for a new key.")
    now = datetime.now(UTC)
    if row.ApiKey.last_used_at is None or now - row.ApiKey.last_used_at > _KEY_USE_STEP:
        session.execute(update(ApiKey).where(ApiKey.id == row.ApiKey.id).values(last_used_at=now))
    return _viewer(row.Contributor)


def ensure_owner(session: Session, settings: Settings) -> Viewer:
    """The person who uses this lab in `local` mode, made on first start; the key lies in the config folder, mode 600.

    The file may be older than this database (several data folders share one config folder): its key then becomes valid here too.

    Raises:
        StoreError: the key file cannot be written, or holds something else.
    """
    audit.key_lock(session, "ensure_owner")
    file, pepper = settings.config_dir / "owner-key", read_pepper(settings)
    key = secret_file(file, new_key())
    parts = key_parts(key)
    if parts is None:
        raise StoreError(f"{file} does not hold a key.", next_step="Delete it; a new one is made at the next start.")
    owner = session.scalar(select(Contributor).where(func.lower(Contributor.username) == OWNER))
    if owner is None:
        owner = Contributor(username=OWNER, role="admin")
        session.add(owner)
        session.flush()
    known = session.scalar(select(ApiKey).where(ApiKey.prefix == parts.prefix))
    if known is None:
        _keep_key(session, owner.id, key, pepper=pepper, name="owner-key")
    elif not same(known.secret_hmac, key_hmac(parts.secret, pepper)):
        known.secret_hmac = key_hmac(parts.secret, pepper)  # the pepper was changed; the file is still the owner's
        session.flush()
    return Viewer(contributor_id=owner.id, role=owner.role, is_owner=True)


def leaderboard(session: Session, sort_by: SortBy = "runs", limit: int = 50) -> list[Standing]:
    """Contributors with accepted runs, best first."""
    counted = _counted().subquery()
    order = (counted.c.runs, counted.c.seconds) if sort_by == "runs" else (counted.c.seconds, counted.c.runs)
    rows = session.execute(
        select(Contributor, counted)
        .join(counted, counted.c.contributor_id == Contributor.id)
        .where(Contributor.status == "active", counted.c.runs > 0)
        .order_by(*(column.desc() for column in order), Contributor.id)
        .limit(limit)
    )
    return [
        Standing(
            rank=rank,
            id=row.Contributor.id,
            username=row.Contributor.username,
            role=row.Contributor.role,
            runs_completed=row.runs,
            compute_donated_seconds=row.seconds,
            tasks=row.tasks,
            last_run_at=row.last_run_at,
        )
        for rank, row in enumerate(rows, start=1)
    ]


def profile(session: Session, contributor_id: UUID) -> Profile:
    """What a contributor has done.

    Raises:
        NotFound: there is no such contributor.
    """
    person = session.get(Contributor, contributor_id)
    if person is None or person.status == "erased":
        raise NotFound(f"there is no contributor {contributor_id}.", next_step="The leaderboard lists all who contributed.")
    row = session.execute(_counted().where(Submission.contributor_id == contributor_id)).one_or_none()
    names = ("runs", "waiting", "refused", "seconds", "tasks", "classes")
    counts: dict[str, Any] = {name: getattr(row, name) if row is not None else 0 for name in names}
    return Profile(
        id=person.id,
        username=person.username,
        role=person.role,
        created_at=person.created_at,
        runs_completed=counts["runs"],
        runs_waiting=counts["waiting"],
        runs_refused=counts["refused"],
        compute_donated_seconds=float(counts["seconds"]),
        tasks=counts["tasks"],
        hardware_classes=counts["classes"],
        badges=_badges(runs=counts["runs"], tasks=counts["tasks"], seconds=float(counts["seconds"]), classes=counts["classes"]),
    )


def set_role(session: Session, viewer: Viewer, contributor_id: UUID, role: str) -> None:
    """Gives a contributor another role; the last admin stays one.

    Raises:
        NotAllowed: the viewer is no admin.
        NotFound: there is no such contributor.
        SpecError: there is no such role.
        Conflict: nobody would be left to give roles.
    """
    if not viewer.can("administer"):
        raise NotAllowed("roles are given by admins only.", next_step="Ask an admin of this instance.")
    if role not in ROLES:
        raise SpecError(f"unknown role '{role}'; expected one of: {', '.join(ROLES)}.")
    audit.key_lock(session, "set_role")
    person = session.get(Contributor, contributor_id)
    if person is None:
        raise NotFound(f"there is no contributor {contributor_id}.")
    admins = session.scalar(select(func.count()).where(Contributor.role == "admin", Contributor.status == "active")) or 0
    if person.role == "admin" and role != "admin" and admins <= 1:
        raise Conflict(f"'{person.username}' is the last admin.", next_step="Make somebody else admin first.")
    before, person.role = person.role, role
    audit.record(session, viewer.contributor_id, "role_changed", f"contributor:{person.id}", {"from": before, "to": role})


def find_by_name(session: Session, username: str) -> UUID:
    """The id of the contributor of that name, in any case.

    Raises:
        NotFound: there is none.
    """
    found = session.scalar(select(Contributor.id).where(func.lower(Contributor.username) == username.lower()))
    if found is None:
        raise NotFound(f"there is no contributor '{username}'.")
    return found


def _counted() -> Select[UUID, int, int, int, float, int, int, datetime]:
    """Per contributor what their submissions amount to."""
    accepted = Submission.verdict == "accepted"
    return select(
        Submission.contributor_id,
        func.count().filter(accepted).label("runs"),
        func.count().filter(Submission.verdict == "waiting").label("waiting"),
        func.count().filter(Submission.verdict == "refused").label("refused"),
        func.coalesce(func.sum(Submission.credited_s).filter(accepted), 0.0).label("seconds"),
        func.count(Submission.task_id.distinct()).filter(accepted).label("tasks"),
        func.count(Submission.hardware_class.distinct()).filter(accepted).label("classes"),
        func.max(Submission.submitted_at).filter(accepted).label("last_run_at"),
    ).group_by(Submission.contributor_id)


def _badges(*, runs: int, tasks: int, seconds: float, classes: int) -> tuple[Badge, ...]:
    earned = [
        Badge(id=f"runs_{least}", name=name, reason=f"{least} accepted {'run' if least == 1 else 'runs'}")
        for least, name in ((1, "First light"), (10, "Regular"), (100, "Pillar"), (1000, "Bedrock"))
        if runs >= least
    ]
    if tasks >= 3:
        earned.append(Badge(id="tasks_3", name="Wide view", reason="accepted runs in 3 tasks"))
    if classes >= 2:
        earned.append(Badge(id="classes_2", name="Second opinion", reason="accepted runs on 2 kinds of hardware"))
    if seconds >= 24 * 3600:
        earned.append(Badge(id="compute_day", name="A day of compute", reason="24 credited hours"))
    return tuple(earned)


def _keep_key(session: Session, contributor_id: UUID, key: str, *, pepper: bytes, name: str) -> None:
    parts = key_parts(key)
    assert parts is not None, "a key that this module did not make"
    session.add(ApiKey(contributor_id=contributor_id, prefix=parts.prefix, secret_hmac=key_hmac(parts.secret, pepper), name=name))
    session.flush()


def _active_key(prefix: str) -> Select[ApiKey, Contributor]:
    return (
        select(ApiKey, Contributor)
        .join(Contributor, Contributor.id == ApiKey.contributor_id)
        .where(
            ApiKey.prefix == prefix,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
            Contributor.status == "active",
        )
    )


def _viewer(person: Contributor) -> Viewer:
    return Viewer(contributor_id=person.id, role=person.role)


def _checked_name(username: str) -> str:
    name = unicodedata.normalize("NFKC", username).strip()
    if not _USERNAME.fullmatch(name):
        raise SpecError(
            f"'{username[:40]}' cannot be a user name; expected 3 to 32 letters, digits, '-' or '_', beginning with a letter or digit."
        )
    if name.lower() in RESERVED:
        raise Conflict(f"the name '{name}' is kept for the lab itself.", next_step="Choose another name.")
    return name


def _checked_email(email: str | None) -> str | None:
    if email is None or not email.strip():
        return None
    address = email.strip()
    if len(address) > 254 or not _EMAIL.fullmatch(address):
        raise SpecError(f"'{address[:60]}' is not an e-mail address; expected something like name@example.org.")
    return address
