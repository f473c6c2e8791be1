"""Registration, leaderboard, profiles."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from app.api.access import Asked
from app.api.limits import MAX_LIST
from db.contributors import Profile, SortBy, Standing, leaderboard, profile, register
from db.keys import read_pepper
from db.submission_views import Submission, SubmissionFilter, list_submissions
from engine.errors import NotAllowed
from engine.spec.base import Frozen

router = APIRouter(tags=["contributors"])


class Registration(Frozen):
    """Who wants to contribute."""

    username: Annotated[str, Field(min_length=1, max_length=64, description="3 to 32 letters, digits, '-' or '_'; everybody sees it.")]
    email: Annotated[str | None, Field(max_length=254, description="Never shown to others; may be left out.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A new contributor, with the key that is shown this once."""

    id: UUID
    contributor_id: UUID
    username: str
    api_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileWithRuns(Profile):
    """A profile with the latest submissions."""

    runs: tuple[Submission, ...]


@router.post("/register", status_code=201)
@router.post("/auth/register", status_code=201, include_in_schema=False)
def register_contributor(asked: Asked, wanted: Registration) -> Welcome:
    """Makes a contributor with a first key. The key is shown this once."""
    asked.take_registration()
    settings = asked.services.settings
    if settings.registration != "open":
        raise NotAllowed("registration is closed on this instance.", next_step="Ask an admin for a key.")
    with asked.turn() as turn:
        made = register(turn.session, username=wanted.username, email=wanted.email, pepper=read_pepper(settings))
    return Welcome(id=made.contributor_id, contributor_id=made.contributor_id, username=made.username, api_key=made.api_key)


@router.get("/contributors")
def contributors(asked: Asked, sort_by: SortBy = "runs", limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50) -> list[Standing]:
    """The leaderboard, counted from accepted submissions."""
    with asked.turn() as turn:
        return leaderboard(turn.session, sort_by, limit)


@router.get("/contributors/{contributor_id}")
def contributor(asked: Asked, contributor_id: UUID, limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50) -> ProfileWithRuns:
    """A profile with badges and the latest submissions."""
    with asked.turn() as turn:
        shown = profile(turn.session, contributor_id)
        runs = list_submissions(turn.session, turn.viewer, SubmissionFilter(contributor_id=contributor_id), limit=limit)
    return ProfileWithRuns(**{name: getattr(shown, name) for name in Profile.__dataclass_fields__}, runs=tuple(runs))
