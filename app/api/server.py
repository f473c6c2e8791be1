"""The API alone, without pages: `uvicorn app.api.server:app`. A hosted instance runs it as a process of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Mount, Route

from app.api import create_api
from app.api.faults import unknown_path
from app.process import running_services
from app.services import services


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Starts and stops the services."""
    async with running_services():
        yield


async def to_docs(_: Request) -> RedirectResponse:
    """Where people who look at the bare address want to go."""
    return RedirectResponse("/api/docs")


async def nothing_there(_: Request, __: Exception) -> JSONResponse:
    """An unknown path outside of /api."""
    return unknown_path().answer(404)


app = Starlette(
    routes=[Route("/", to_docs), Route("/api", to_docs), Mount("/api", app=create_api(services))],
    lifespan=lifespan,
    exception_handlers={404: nothing_there, HTTPException: nothing_there},
)
