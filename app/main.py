"""The ASGI app: the pages, and the HTTP API under /api, on one port. Run by `streamlit run app/main.py` or uvicorn."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio.to_thread
import streamlit as st
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from app.api import create_api
from app.process import running_services
from app.services import services
from app.wording import sentence

logger = logging.getLogger(__name__)

api = create_api(services)


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[dict[str, Any]]:
    """Starts and stops what the process shares."""
    async with running_services() as running:
        await anyio.to_thread.run_sync(import_module, "app.results")  # Altair and pandas, so that the first page does not wait for them
        yield {"services": running}


async def to_docs(_: Any) -> RedirectResponse:
    """`/api` without a slash would be answered by the pages."""
    return RedirectResponse("/api/docs")


def on_script_error(error: BaseException) -> bool:
    """A fault in a page: the log gets the traceback, the person a sentence."""
    logger.error("a page failed", exc_info=error, extra={"action": "page_failed"})
    st.error(sentence(error))
    return True


app = st.App(
    Path(__file__).resolve().with_name("shell.py"),
    lifespan=lifespan,
    on_script_error=on_script_error,
    routes=[Route("/api", to_docs), Mount("/api", app=api)],
)

if __name__ == "__main__":
    app.run()
