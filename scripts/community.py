"""A community instance over HTTPS: one session, a key in a header, and answers that are really from such an instance."""

import ipaddress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import requests

from engine.errors import CommunityUnreachable, Conflict, LabError, NotAllowed, NotFound, RateLimited, SpecError
from engine.provenance import engine_version

PREFIX = "/api/platform"
TIMEOUT_S = (10, 60)
"""Seconds to connect, and to wait for an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: the status, and the JSON body (None without one)."""

    status: int
    body: Any
    retry_after_s: float | None = None

    @property
    def message(self) -> str:
        """The sentence of an error answer."""
        body = self.body if isinstance(self.body, dict) else {}
        text = body.get("message") or body.get("detail") or f"status {self.status}"
        return text if isinstance(text, str) else str(text)


class Community:
    """The instance at one address, as one person."""

    def __init__(self, url: str, api_key: str | None = None, *, insecure: bool = False) -> None:
        """Opens nothing yet.

        Raises:
            NotAllowed: a key would travel unencrypted to another machine.
        """
        if urlsplit(url).scheme == "http" and not insecure and not _is_here(urlsplit(url).hostname or ""):
            raise NotAllowed(
                f"{url} is not encrypted: others on the way could read your key.", next_step="Use https://, or accept that with --insecure."
            )
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"philab/{engine_version()}"
        if api_key:
            self._session.headers["X-API-Key"] = api_key

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at a path below the platform's prefix; query values that are None are left out.

        Raises:
            LabError: the instance says no, or does not answer.
        """
        return raised(self.call("GET", path, query={key: value for key, value in query.items() if value is not None})).body

    def post(self, path: str, body: Any = None) -> Any:
        """The answer to a JSON body.

        Raises:
            LabError: the instance says no, or does not answer.
        """
        return raised(self.call("POST", path, body=body)).body

    def call(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; error answers are returned, not raised.

        Raises:
            CommunityUnreachable: no answer, or one that no philab instance gives.
        """
        headers = {**(headers or {}), **({"Content-Type": "application/json"} if raw is not None else {})}
        try:
            response = self._session.request(
                method,
                f"{self.url}{PREFIX}{path}",
                params=query,
                json=body if raw is None else None,
                data=raw,
                headers=headers,
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
        except requests.RequestException as lost:
            raise CommunityUnreachable(
                f"{self.url} does not answer: {_reason(lost)}.", next_step="Check the address and try again."
            ) from lost
        return _answer(self.url, response)


def raised(answer: Answer) -> Answer:
    """The answer, if it is a good one.

    Raises:
        LabError: the leaf that fits its status, with the instance's own sentence.
    """
    if answer.status < 400:
        return answer
    if answer.status == 429:
        raise RateLimited(answer.message, retry_after_s=answer.retry_after_s or 1.0)
    if answer.status >= 500:
        raise CommunityUnreachable(f"the instance failed: {answer.message}.", next_step="Try again later.")
    leaf: type[LabError] = {401: NotAllowed, 403: NotAllowed, 404: NotFound, 409: Conflict, 410: Conflict}.get(answer.status, SpecError)
    raise leaf(answer.message)


def in_path(part: str) -> str:
    """One piece of a path, so that no value can reach another place."""
    return quote(part, safe="")


def _answer(url: str, response: requests.Response) -> Answer:
    if 300 <= response.status_code < 400:
        target = response.headers.get("Location", "elsewhere")
        raise CommunityUnreachable(f"{url} points to {target}; keys are not sent on.", next_step="Give that address with --url.")
    if response.status_code == 204 or not response.content:
        return Answer(status=response.status_code, body=None, retry_after_s=_seconds(response))
    if "json" not in response.headers.get("Content-Type", ""):
        if response.status_code >= 500:
            return Answer(status=response.status_code, body=None, retry_after_s=_seconds(response))
        raise CommunityUnreachable(f"{url} answers, but is no philab instance.", next_step="Check the address.")
    try:
        return Answer(status=response.status_code, body=response.json(), retry_after_s=_seconds(response))
    except ValueError as wrong:
        raise CommunityUnreachable(f"{url} answered with broken JSON.", next_step="Try again later.") from wrong


def _seconds(response: requests.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _reason(lost: requests.RequestException) -> str:
    match lost:
        case requests.exceptions.SSLError():
            return "its certificate is not trusted"
        case requests.exceptions.Timeout():
            return "it took too long"
        case requests.exceptions.ConnectionError():
            return "no connection"
        case _:
            return str(lost).rstrip(".")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
