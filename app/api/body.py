"""What is turned away before any route looks at it: too large, compressed, or JSON that means different things to different readers."""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.faults import Fault
from db.schema import new_id
from engine.evidence.submission import MAX_BODY_BYTES

MAX_QUERY_BYTES = 8192
DISCARDED_BYTES = 4 * MAX_BODY_BYTES
"""Of a body that is too large, so much is received and thrown away, so that its sender gets to read the answer."""

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_KEY_WORDS = {"api_key", "apikey", "x-api-key", "key", "token"}


class StrictRequests:
    """Counts received bytes, reads every body whole and strictly, numbers every request, and adds headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if nothing speaks against it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = str(new_id())
        scope.setdefault("state", {})["request_id"] = number
        send = _with_headers(send, number)
        turned_away = _head_fault(scope)
        body = b""
        if turned_away is None:
            body, turned_away = await _read(receive)
        if turned_away is None and body:
            turned_away = _type_fault(scope) or await anyio.to_thread.run_sync(json_fault, body)
        if turned_away is not None:
            status, fault = turned_away
            await fault.answer(status, {"Connection": "close"})(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)


def json_fault(body: bytes) -> tuple[int, Fault] | None:
    """Why this body is not acceptable JSON: not UTF-8, NaN, too deep, a key twice, NUL, half a surrogate, a number too large."""
    try:
        text = body.decode()
        from_json(body, allow_inf_nan=False)  # stops at 200 levels before the reader below would recurse
        json.loads(text, object_pairs_hook=_unique, parse_float=_finite)
    except (ValueError, RecursionError) as wrong:
        return 400, Fault(error_code="bad_json", message=f"the body is not acceptable JSON: {str(wrong)[:200]}.")
    if _NUL.search(text):
        return 400, Fault(error_code="bad_json", message="the body has a NUL character, which no text here may hold.")
    return None


def _head_fault(scope: Scope) -> tuple[int, Fault] | None:
    query: bytes = scope["query_string"]
    encoding = _header(scope, b"content-encoding")
    if encoding not in (b"", b"identity"):
        return 415, Fault(error_code="unsupported_media_type", message="compressed requests are not accepted; send the body as it is.")
    if len(query) > MAX_QUERY_BYTES:
        return 414, Fault(error_code="too_large", message=f"the query has {len(query)} bytes; expected at most {MAX_QUERY_BYTES}.")
    if "\x00" in scope["path"] or b"%00" in query or b"\x00" in query:
        return 400, Fault(error_code="bad_request", message="the address has a NUL character.")
    if _KEY_WORDS & {name.lower() for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)}:
        return 400, Fault(error_code="bad_request", message="keys travel in the header X-API-Key, never in the address.")
    return None


def _type_fault(scope: Scope) -> tuple[int, Fault] | None:
    kind = _header(scope, b"content-type").split(b";")[0].strip().lower()
    if kind == b"application/json":
        return None
    return 415, Fault(error_code="unsupported_media_type", message="the body must be application/json.")


async def _read(receive: Receive) -> tuple[bytes, tuple[int, Fault] | None]:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"", (400, Fault(error_code="bad_request", message="the connection ended before the body did."))
        part: bytes = message.get("body", b"")
        size, more = size + len(part), message.get("more_body", False)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        elif size > DISCARDED_BYTES:
            break
    if size > MAX_BODY_BYTES:
        return b"", (413, Fault(error_code="too_large", message=f"the body has more than {MAX_BODY_BYTES} bytes."))
    return b"".join(parts), None


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send, number: str) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            names = {name.lower() for name, _ in headers}
            more = {b"x-request-id": number.encode(), b"x-content-type-options": b"nosniff", b"cache-control": b"no-store"}
            headers += [(name, value) for name, value in more.items() if name not in names]
            message = {**message, "headers": headers}
        await send(message)

    return add


def _header(scope: Scope, name: bytes) -> bytes:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return next((value.strip().lower() for key, value in headers if key.lower() == name), b"")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key '{twice[:40]}' stands twice")
    return values


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{number[:20]} is too large a number")
    return value
