"""What visitors, wrong keys and hostile requests get: walks over every route, and everything is JSON in one form."""

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.api import create_api
from app.api.body import json_fault
from app.api.limits import ANY, REGISTER
from engine.evidence.submission import MAX_BODY_BYTES
from tests.app.api.conftest import Member
from tests.community import SPEC

PUBLIC_WRITES = {"/platform/register", "/platform/auth/register", "/register", "/auth/register"}
PRIVATE_READS = {"/platform/tasks/next", "/tasks/next", "/platform/leases", "/leases"}


def routes() -> list[tuple[str, str]]:
    """Every documented route, and its twin without `/platform`, which the document leaves out."""
    paths = create_api(lambda: pytest.fail("nobody asks")).openapi()["paths"]
    found = {(method, path) for path, operations in paths.items() for method in operations}
    found |= {(method, path.removeprefix("/platform")) for method, path in found}
    return sorted({*found, *(("post", path) for path in PUBLIC_WRITES)})


def filled(path: str) -> str:
    for name in ("task_id", "lease_id", "submission_id", "finding_id", "contributor_id", "run_id"):
        path = path.replace(f"{{{name}}}", "0190b8e5-7c5e-7000-8000-000000000001")
    return path.replace("{name}", "x.bin")


def test_both_prefixes_have_the_same_routes(client: TestClient) -> None:
    found = routes()
    assert len(found) > 35
    for method, path in found:
        answer = client.request(method, f"/api{filled(path)}")
        assert answer.status_code != 405, (method, path)
        assert "there is nothing at this address" not in answer.text, (method, path)


def test_a_stranger_reads_what_is_public_and_changes_nothing(client: TestClient, owner: Member) -> None:
    client.post("/api/runs", json={"spec": SPEC.model_dump(mode="json"), "name": "a private thing"}, headers=owner.headers)
    for method, path in routes():
        answer = client.request(method, f"/api{filled(path)}", json={} if method in ("post", "patch") else None)
        assert answer.status_code < 500, (method, path)
        assert "a private thing" not in answer.text
        if path in PUBLIC_WRITES:
            assert answer.status_code == 422
        elif method != "get" or path in PRIVATE_READS:
            assert answer.status_code in (401, 422), (method, path)
            assert answer.status_code == 401 or method in ("post", "patch")
        else:
            assert answer.status_code in (200, 404), (method, path)


def test_every_route_that_changes_things_wants_a_key_even_with_a_good_body(client: TestClient, task: dict[str, Any]) -> None:
    bodies = {"tasks": {"name": "x", "spec": SPEC.model_dump(mode="json")}, "runs": {"spec": SPEC.model_dump(mode="json")}, "leases": {}}
    for noun, body in bodies.items():
        answer = client.post(f"/api/{noun}", json=body)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "not_allowed"), noun
        assert answer.headers["www-authenticate"] == "ApiKey"
    assert client.patch(f"/api/tasks/{task['id']}", json={"status": "archived"}).status_code == 401


@pytest.mark.parametrize("key", ["plk_wrong", "", "x" * 5000, "plk_aaaaaaaa_bbbb_00000000"])
def test_a_wrong_key_is_never_taken_for_none(client: TestClient, key: str) -> None:
    answer = client.get("/api/tasks", headers={"X-API-Key": key})
    assert answer.status_code == (200 if key == "" else 401)


@pytest.mark.parametrize("name", ["api_key", "X-API-Key", "token"])
def test_keys_in_the_address_are_refused(client: TestClient, owner: Member, name: str) -> None:
    answer = client.get("/api/tasks", params={name: owner.headers["X-API-Key"]})
    assert answer.status_code == 400
    assert owner.headers["X-API-Key"] not in answer.text


@pytest.mark.parametrize("path", ["/api/nothing", "/api/platform/", "/api/tasks/not-an-id", "/api/docs/x", "/api/tasks/%00", "/api/"])
def test_unknown_addresses_are_json(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404, 422)
    assert set(answer.json()) == {"error_code", "message", "next_step", "details"}


def test_wrong_methods_are_json(client: TestClient) -> None:
    answer = client.put("/api/tasks", json={})
    assert (answer.status_code, answer.json()["error_code"]) == (405, "method_not_allowed")


def test_the_docs_are_there_and_load_from_here_alone(client: TestClient) -> None:
    page = client.get("/api/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any("swagger" in path for path in loaded)
    for path in loaded:
        assert path.startswith("/api/")
        assert client.get(path).status_code == 200, path
    paths = client.get("/api/openapi.json").json()["paths"]
    assert "/platform/tasks/next" in paths
    assert "/tasks/next" not in paths


def test_every_answer_is_numbered_and_closed_to_other_origins(client: TestClient) -> None:
    one, other = client.get("/api/tasks", headers={"Origin": "https://evil.example"}), client.get("/api/nothing")
    assert one.headers["x-request-id"] != other.headers["x-request-id"]
    assert not [name for name in one.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "body",
    [
        b'{"username": NaN}',
        b'{"username": 1e999}',
        b'{"username": "a", "username": "b"}',
        b'{"username": "a\\u0000"}',
        b'{"username": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b'{"username": "\xff"}',
        b"not json",
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_ambiguous_json_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/register", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "bad_json")


def test_a_written_backslash_is_no_nul() -> None:
    assert json_fault(b'{"a": "\\\\u0000"}') is None
    assert json_fault(b'{"a": "\\\\\\u0000"}') is not None


def test_compressed_and_untyped_bodies_are_refused(client: TestClient) -> None:
    packed = gzip.compress(b'{"username": "ada"}')
    for headers in ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, {"Content-Type": "text/plain"}):
        answer = client.post("/api/register", content=packed, headers=headers)
        assert answer.status_code == 415


def test_a_body_that_is_too_large_is_refused_by_received_bytes(server: str) -> None:
    """Chunked, so no length is announced."""
    chunks = (b"x" * 65_536 for _ in range(MAX_BODY_BYTES // 65_536 + 4))
    with closing(http.client.HTTPConnection(urlsplit(server).netloc, timeout=20)) as connection:
        connection.request("POST", "/api/register", body=chunks, headers={"Content-Type": "application/json"}, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["error_code"] == "too_large"


def test_a_body_without_end_is_cut_off(server: str) -> None:
    """Whoever goes on sending is disconnected; no more than a fixed number of bytes is received, and none of it kept."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * MAX_BODY_BYTES:
            sent += 65_536
            yield b"x" * 65_536

    with closing(http.client.HTTPConnection(urlsplit(server).netloc, timeout=20)) as connection, suppress(ConnectionError):
        connection.request("POST", "/api/register", body=endless(), headers={"Content-Type": "application/json"}, encode_chunked=True)
    assert sent < 32 * MAX_BODY_BYTES


def test_a_body_just_within_the_limit_is_read(client: TestClient) -> None:
    body = json.dumps({"username": "ada", "x": "y" * (MAX_BODY_BYTES - 40)}).encode()
    assert len(body) <= MAX_BODY_BYTES
    answer = client.post("/api/register", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error_code"]) == (422, "invalid_request")
    assert len(answer.text) < 2000


def test_too_many_registrations_have_to_wait(client: TestClient) -> None:
    answers = [client.post("/api/register", json={"username": f"person-{number}"}).status_code for number in range(REGISTER.burst + 1)]
    assert answers == [201] * REGISTER.burst + [429]
    late = client.post("/api/register", json={"username": "late"}, headers={"X-Forwarded-For": "10.1.2.3"})
    assert late.status_code == 429
    assert 0 < int(late.headers["retry-after"]) <= 30
    assert late.json()["details"]["retry_after_s"] > 0


def test_the_watch_keepers_are_not_counted(client: TestClient, lab: Any) -> None:
    from sqlalchemy import text

    with lab.database.session() as session:
        session.execute(text("insert into rate_buckets values (:key, now() + interval '1 day')"), {"key": f"{ANY.name}:testclient"})
    assert client.get("/api/tasks").status_code == 429
    assert client.get("/api/health").status_code == 200
    assert client.get("/api/version").status_code == 200


def test_people_cannot_use_each_others_things(asgi: Starlette, client: TestClient, owner: Member, task: dict[str, Any]) -> None:
    key = client.post("/api/register", json={"username": "mallory"}).json()["api_key"]
    mallory = {"X-API-Key": key}
    lease = client.post("/api/leases", headers=owner.headers).json()["lease_id"]
    assert client.delete(f"/api/leases/{lease}", headers=mallory).status_code == 404
    refused = client.patch(f"/api/tasks/{task['id']}", json={"status": "archived"}, headers=mallory)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "not_allowed")
