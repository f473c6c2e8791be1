"""How a web process of ours starts and ends, with pages or with the API alone. Imports without torch and Streamlit."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread

from app.services import Services, start_services
from engine.errors import LabError


@asynccontextmanager
async def running_services() -> AsyncIterator[Services]:
    """The services for as long as the process lives; what cannot start says why in one sentence and ends the process."""
    _configure_logging()
    try:
        running = await anyio.to_thread.run_sync(start_services)
    except LabError as wrong:
        sys.stderr.write(f"philab cannot start: {wrong}\n")
        sys.stderr.flush()
        os._exit(1)  # raising here would print a traceback, and the server would end with a code of its own
    try:
        yield running
    finally:
        await anyio.to_thread.run_sync(running.close)


def _configure_logging() -> None:
    """One line per event. The job queue tells of every look it takes, so only its warnings are kept."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
