"""Fixtures of the API: a lab with a database of its own, a client in this process, and a real server on loopback."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.api import create_api
from app.services import Services
from db.connection import Database
from db.contributors import ensure_owner
from engine.settings import Settings
from engine.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Somebody with a key."""

    id: str
    headers: dict[str, str]


@pytest.fixture
def lab(own_database: Database, own_settings: Settings, store: Store) -> Services:
    with own_database.session() as session:
        owner = ensure_owner(session, own_settings)
    return Services(settings=own_settings, database=own_database, store=store, owner=owner, worker=None)


@pytest.fixture
def asgi(lab: Services) -> Starlette:
    return Starlette(routes=[Mount("/api", app=create_api(lambda: lab))])


@pytest.fixture
def client(asgi: Starlette) -> Iterator[TestClient]:
    with TestClient(asgi, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def owner(lab: Services) -> Member:
    key = (lab.settings.config_dir / "owner-key").read_text().strip()
    assert lab.owner is not None
    return Member(id=str(lab.owner.contributor_id), headers={"X-API-Key": key})


@pytest.fixture
def join(client: TestClient) -> Callable[[str], Member]:
    """Registers somebody over HTTP."""

    def register(name: str) -> Member:
        made = client.post("/api/platform/register", json={"username": name, "email": f"{name}@example.org"})
        assert made.status_code == 201, made.text
        return Member(id=made.json()["contributor_id"], headers={"X-API-Key": made.json()["api_key"]})

    return register


@pytest.fixture
def task(client: TestClient, owner: Member) -> dict[str, Any]:
    """A task of 6 shards × 2 replicas."""
    from tests.community import SPEC

    draft = {"name": "Induction heads", "spec": SPEC.model_dump(mode="json"), "n_shards": 6, "replicas": 2, "delta": 0.05}
    made = client.post("/api/platform/tasks", json=draft, headers=owner.headers)
    assert made.status_code == 201, made.text
    return made.json()


@pytest.fixture
def server(asgi: Starlette) -> Iterator[str]:
    """The address of a real server of this test."""
    running = uvicorn.Server(uvicorn.Config(asgi, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join()
