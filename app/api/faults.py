"""The HTTP edge of errors: every fault becomes one JSON envelope, and no traceback leaves the process."""

import logging
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from engine.errors import (
    CommunityUnreachable,
    Conflict,
    DatabaseUnavailable,
    DatasetError,
    LabError,
    ModelError,
    NotAllowed,
    NotFound,
    RateLimited,
    RunCancelled,
    SpecError,
    StoreError,
    SubmissionRefused,
)

logger = logging.getLogger(__name__)

STATUSES: dict[type[LabError], int] = {
    SpecError: 422,
    DatasetError: 422,
    ModelError: 422,
    SubmissionRefused: 422,
    NotFound: 404,
    Conflict: 409,
    RunCancelled: 409,
    NotAllowed: 403,
    RateLimited: 429,
    StoreError: 503,
    DatabaseUnavailable: 503,
    CommunityUnreachable: 502,
}
"""Leaf of the error tree -> HTTP status. 403 becomes 401 where a valid key would help."""

_HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What every error answer looks like.

    Attributes:
        error_code: short stable identifier.
        message: one sentence for people.
        next_step: what to do now; may be empty.
        details: further fields, depending on the code.
    """

    error_code: str
    message: str
    next_step: str = ""
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def answer(self, status: int, headers: dict[str, str] | None = None) -> JSONResponse:
        """The fault as an HTTP answer."""
        body = {"error_code": self.error_code, "message": self.message, "next_step": self.next_step, "details": self.details}
        return JSONResponse(body, status_code=status, headers=headers)


def add_fault_handlers(api: FastAPI) -> None:
    """Makes the app answer every error in the one form."""
    api.add_exception_handler(LabError, _lab_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(DBAPIError, _database)
    api.add_exception_handler(Exception, _unexpected)


def status_of(error: LabError) -> int:
    """The HTTP status of an error; 500 for one that has none."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def unknown_path() -> Fault:
    """What is said about a path that does not exist."""
    return Fault(error_code="not_found", message="there is nothing at this address.", next_step="See /api/docs for all routes.")


async def _lab_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LabError)
    status, headers = status_of(error), dict[str, str]()
    if status == 403 and getattr(request.state, "needs_key", False):
        status, headers = 401, {"WWW-Authenticate": "ApiKey"}
    details: dict[str, Any] = {}
    if isinstance(error, SubmissionRefused):
        details["reason"] = error.reason
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(ceil(error.retry_after_s))
        details["retry_after_s"] = error.retry_after_s
    return Fault(error_code=error.code, message=error.message, next_step=error.next_step, details=details).answer(status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    faults = [{"field": ".".join(str(part) for part in one["loc"]), "message": one["msg"], "type": one["type"]} for one in error.errors()]
    first = faults[0]
    more = f" {len(faults) - 1} more fault(s) follow in details." if len(faults) > 1 else ""
    fault = Fault(
        error_code="invalid_request",
        message=f"'{first['field']}': {first['message']}.{more}",
        next_step="See /api/docs for the fields of this request.",
        details={"faults": faults[:20]},
    )
    return fault.answer(422)


async def _http(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return unknown_path().answer(404)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    return Fault(error_code=code, message=f"{error.detail}.").answer(error.status_code, dict(error.headers or {}))


async def _database(request: Request, error: Exception) -> JSONResponse:
    logger.error("the database failed", exc_info=error, extra={"action": "database_failed", "path": request.url.path})
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    message = "the database cannot be reached." if lost else "the database could not do this."
    return Fault(error_code="database_unavailable", message=message, next_step="Try again in a moment.").answer(503, {"Retry-After": "5"})


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=error, extra={"action": "request_failed", "path": request.url.path})
    number = getattr(request.state, "request_id", "")
    fault = Fault(
        error_code="internal_error",
        message="something went wrong on this instance; its log has the details.",
        next_step="Trying again is safe.",
        details={"request_id": number},
    )
    return fault.answer(500)
