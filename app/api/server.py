"""The API alone, without pages: `uvicorn app.api.server:app`. A hosted instance runs it as a process of its own."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Mount, Route

from app.api import create_api
from app.api.faults import unknown_path
from app.services import services, start_services
from engine.errors import LabError


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Starts and stops the services; what cannot start says why in one sentence and ends the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        running = await anyio.to_thread.run_sync(start_services)
    except LabError as wrong:
        sys.stderr.write(f"philab cannot start: {wrong}\n")
        sys.stderr.flush()
        os._exit(1)  # raising here would print a traceback, and the server would end with a code of its own
    try:
        yield
    finally:
        await anyio.to_thread.run_sync(running.close)


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
