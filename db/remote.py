"""The same questions, asked of a remote instance over HTTP; the answers are the same values as from the database here."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, TypeVar, cast
from uuid import UUID

import requests
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from db.contributors import Profile, SortBy, Standing
from db.findings import Finding
from db.submission_views import Stats, Submission, SubmissionDetail, SubmissionFilter
from db.tasks import TaskCard, TaskDetail
from engine.errors import (
    CommunityUnreachable,
    Conflict,
    LabError,
    NotAllowed,
    NotFound,
    RateLimited,
    SpecError,
    SubmissionRefused,
)

TIMEOUT_S = (5.0, 30.0)
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_LEAVES: dict[str, type[LabError]] = {leaf.code: leaf for leaf in (SpecError, NotFound, Conflict, NotAllowed)}

Answer = TypeVar("Answer")


class RemoteCommunity:
    """A community instance as somebody sees it. Nothing is asked before the first question."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Takes the address of an instance, without `/api`.

        Raises:
            SpecError: it is not an http address.
        """
        if not url.startswith(("http://", "https://")):
            raise SpecError(f"'{url[:80]}' is not the address of an instance; expected https://...")
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # no keys or proxies from files that nobody looked at
        if api_key:
            self._session.headers["X-API-Key"] = api_key

    def list_tasks(self, status: str | None = None, limit: int = 50, *, min_priority: int | None = None) -> list[TaskCard]:
        """As `db.tasks.list_tasks`."""
        return self._ask(list[TaskCard], "/tasks", status=status, limit=limit, priority=min_priority)

    def get_task(self, task_id: UUID) -> TaskDetail:
        """As `db.tasks.get_task`."""
        return self._ask(TaskDetail, f"/tasks/{task_id}")

    def list_submissions(
        self, wanted: SubmissionFilter | None = None, *, mine: bool = False, limit: int = 50, offset: int = 0
    ) -> list[Submission]:
        """As `db.submission_views.list_submissions`; `mine` asks for those of the key's owner."""
        query = asdict(wanted or SubmissionFilter())
        query["from"], query["to"] = query.pop("since"), query.pop("until")
        if mine:
            query["contributor_id"] = "me"
        return self._ask(list[Submission], "/results", limit=limit, offset=offset, **query)

    def get_submission(self, submission_id: UUID) -> SubmissionDetail:
        """As `db.submission_views.get_submission`."""
        return self._ask(SubmissionDetail, f"/results/{submission_id}")

    def list_findings(
        self,
        task_id: UUID | None = None,
        finding_type: str | None = None,
        min_confidence: float | None = None,
        *,
        status: str | None = None,
        limit: int = 500,
        offset: int = 0,
    ) -> list[Finding]:
        """As `db.findings.list_findings`."""
        query = {"task_id": task_id, "finding_type": finding_type, "min_confidence": min_confidence, "status": status}
        return self._ask(list[Finding], "/findings", limit=limit, offset=offset, **query)

    def get_finding(self, finding_id: UUID) -> Finding:
        """As `db.findings.get_finding`."""
        return self._ask(Finding, f"/findings/{finding_id}")

    def leaderboard(self, sort_by: SortBy = "runs", limit: int = 50) -> list[Standing]:
        """As `db.contributors.leaderboard`."""
        return self._ask(list[Standing], "/contributors", sort_by=sort_by, limit=limit)

    def profile(self, contributor_id: UUID) -> Profile:
        """As `db.contributors.profile`."""
        return self._ask(Profile, f"/contributors/{contributor_id}", limit=1)

    def stats(self) -> Stats:
        """As `db.submission_views.stats`."""
        return self._ask(Stats, "/stats")

    def close(self) -> None:
        """Lets go of the connections."""
        self._session.close()

    def _ask(self, kind: type[Answer], path: str, **query: Any) -> Answer:
        given = {name: _plain(value) for name, value in query.items() if value is not None}
        body = self._read(path, given)
        try:
            return TypeAdapter(kind).validate_python(body)
        except ValidationError as wrong:
            raise CommunityUnreachable(
                f"{self.url} answered in a form that this version cannot read.", next_step="Update philab here or there."
            ) from wrong

    def _read(self, path: str, query: Mapping[str, str]) -> Any:
        address = f"{self.url}/api/platform{path}"
        try:
            with self._session.get(address, params=query, timeout=TIMEOUT_S, allow_redirects=False, stream=True) as response:
                body = self._json(response)
                if response.status_code >= 400:
                    raise _fault(self.url, response, body)
                return body
        except requests.RequestException as lost:
            raise CommunityUnreachable(f"{self.url} does not answer.", next_step="Check the address and the network.") from lost

    def _json(self, response: requests.Response) -> Any:
        """The JSON of an answer; pages, redirects and endless answers are none."""
        kind = response.headers.get("Content-Type", "").split(";")[0]
        if 300 <= response.status_code < 400 or kind != "application/json":
            raise CommunityUnreachable(f"{self.url} answers, but is no philab instance.", next_step="Check the address.")
        parts: list[bytes] = []
        size = 0
        for part in response.iter_content(65_536):
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise CommunityUnreachable(f"{self.url} answered with more than {MAX_ANSWER_BYTES} bytes.", next_step="Ask for less.")
            parts.append(part)
        try:
            return from_json(b"".join(parts), allow_inf_nan=False)
        except ValueError as wrong:
            raise CommunityUnreachable(f"{self.url} answered with broken JSON.", next_step="Try again later.") from wrong


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _fault(url: str, response: requests.Response, body: Any) -> LabError:
    """The instance's own error, as the leaf it was there."""
    values = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    details: Any = values.get("details")
    message, next_step = (
        str(values.get("message") or f"{url} answered with status {response.status_code}."),
        str(values.get("next_step", "")),
    )
    if response.status_code == 429:
        return RateLimited(message, retry_after_s=_retry_after(response), next_step=next_step)
    if values.get("error_code") == SubmissionRefused.code and isinstance(details, dict):
        return SubmissionRefused(message, reason=str(cast("dict[str, Any]", details).get("reason", "refused")), next_step=next_step)
    if response.status_code >= 500:
        return CommunityUnreachable(f"{url} failed: {message}", next_step="Try again later.")
    return _LEAVES.get(str(values.get("error_code")), SpecError)(message, next_step=next_step)


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 1.0
