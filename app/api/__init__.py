"""The HTTP API: all of it below /api, JSON only, beside the pages or in a process of its own. Imports without torch."""

from collections.abc import Callable

from fastapi import APIRouter, Depends, FastAPI
from fastapi_offline import FastAPIOffline

from app.api import findings, leases, people, results, runs, system, tasks
from app.api.access import limited
from app.api.body import StrictRequests
from app.api.faults import add_fault_handlers
from app.services import Services
from engine.provenance import engine_version

DESCRIPTION = """
Everybody may read what is public. Whatever changes something needs a key in the header `X-API-Key`;
`POST /api/platform/register` gives one.

Errors are always `{error_code, message, next_step, details}`.
"""


def create_api(services: Callable[[], Services]) -> FastAPI:
    """The API as an app to be mounted at `/api`.

    Args:
        services: gives the running services; asked at every request, so that they may start later than the app.
    """
    api = FastAPIOffline(  # the documentation page brings its own scripts, so it works without the internet
        title="philab",
        version=engine_version(),
        description=DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
        static_url="/docs-assets",
        redirect_slashes=False,
        dependencies=[Depends(limited)],
    )
    api.state.services = services
    add_fault_handlers(api)
    api.add_middleware(StrictRequests)
    api.include_router(_platform(), prefix="/platform")
    api.include_router(_platform(), include_in_schema=False)  # the same under the shorter names
    api.include_router(runs.router)
    api.include_router(system.router)
    return api


def _platform() -> APIRouter:
    router = APIRouter()
    for noun in (people, tasks, leases, results, findings):
        router.include_router(noun.router)
    return router
