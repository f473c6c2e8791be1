"""The whole turn over HTTP: register, task, lease, result, finding, leaderboard; names as the earlier platform's clients know them."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from engine.evidence.submission import SubmissionPayload
from engine.spec import parse_spec, parse_text
from tests.app.api.conftest import Member
from tests.community import SPEC, payload

Join = Callable[[str], Member]


def body_for(shard: dict[str, Any], **changes: Any) -> SubmissionPayload:
    """What somebody who leased this shard would send."""
    return payload(
        parse_spec(shard["spec"]),
        task_id=shard["task_id"],
        task_spec_hash=shard["spec_hash"],
        dataset_hash=shard["dataset_hash"],
        lease_id=shard["lease_id"],
        **changes,
    )


def send(client: TestClient, person: Member, body: SubmissionPayload, *, key: str | None = None, prefix: str = "/api/platform") -> Any:
    headers = {**person.headers, "Idempotency-Key": key or uuid4().hex, "Content-Type": "application/json"}
    return client.post(f"{prefix}/results", content=body.model_dump_json(), headers=headers)


def fill(client: TestClient, people: list[Member], task_id: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    while True:
        before = len(sent)
        for person in people:
            shard = client.get("/api/platform/tasks/next", params={"task_id": task_id}, headers=person.headers)
            if shard.status_code == 200:
                answer = send(client, person, body_for(shard.json()))
                assert answer.status_code == 201, answer.text
                sent.append(answer.json())
        if len(sent) == before:
            return sent


def test_the_whole_turn(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    people = [join(f"person-{number}") for number in range(5)]
    sent = fill(client, people, task["id"])
    assert len(sent) == 12
    assert {"id", "view_url", "status"} <= set(sent[0])
    assert sent[0]["view_url"] == f"/run?id={sent[0]['run_id']}"
    shown = client.get(f"/api/platform/tasks/{task['id']}").json()
    assert (shown["status"], shown["runs_completed"], shown["runs_needed"]) == ("completed", 12, 12)
    findings = client.get("/api/platform/findings", params={"task_id": task["id"], "min_confidence": 0.9}).json()
    assert [finding["site_label"] for finding in findings] == ["L0H1"]
    assert findings[0]["status"] == "candidate"
    assert findings[0]["ci_low"] < 1 < findings[0]["ci_high"]
    assert client.get(f"/api/findings/{findings[0]['id']}").json() == findings[0]
    board = client.get("/api/platform/contributors", params={"sort_by": "compute_time", "limit": 3}).json()
    assert [standing["rank"] for standing in board] == [1, 2, 3]
    totals = client.get("/api/platform/stats").json()
    assert (totals["total_runs"], totals["total_contributors"], totals["active_tasks"]) == (12, 5, 0)
    assert totals["total_compute_hours"] > 0


@pytest.mark.parametrize("path", ["/api/platform/register", "/api/auth/register", "/api/register"])
def test_registering_gives_a_key_once(client: TestClient, path: str) -> None:
    made = client.post(path, json={"username": "ada", "email": "ada@example.org"})
    assert made.status_code == 201
    assert made.json()["id"] == made.json()["contributor_id"]
    assert made.json()["api_key"].startswith("plk_")
    assert made.headers["cache-control"] == "no-store"
    again = client.post(path, json={"username": "ADA", "email": None})
    assert (again.status_code, again.json()["error_code"]) == (409, "conflict")


def test_closed_registration_says_so(client: TestClient, lab: Any) -> None:
    object.__setattr__(lab, "settings", lab.settings.model_copy(update={"registration": "closed"}))
    refused = client.post("/api/platform/register", json={"username": "ada"})
    assert refused.status_code == 403
    assert "closed" in refused.json()["message"]


def test_tasks_are_public_with_their_spec(client: TestClient, task: dict[str, Any]) -> None:
    for prefix in ("/api/platform", "/api"):
        listed = client.get(f"{prefix}/tasks", params={"status": "open", "limit": 5}).json()
        assert [one["id"] for one in listed] == [task["id"]]
        assert "created_by_name" in listed[0]
        shown = client.get(f"{prefix}/tasks/{task['id']}").json()
        assert parse_text(shown["spec_yaml"]).spec == SPEC
        assert shown["spec_hash"] == SPEC.sha256
    assert client.get("/api/tasks", params={"priority": 1}).json() == []
    assert client.get(f"/api/tasks/{uuid4()}").status_code == 404


def test_a_task_is_made_with_the_names_of_the_earlier_platform(client: TestClient, owner: Member) -> None:
    draft = {
        "name": "Heads",
        "description": "d",
        "hypothesis": "h",
        "spec_yaml": "kind: ablation\nmodel: {id: planted-induction}\ndataset: {name: planted_induction}\n",
        "dataset_name": "planted_induction",
        "runs_needed": 12,
        "priority": 3,
    }
    made = client.post("/api/platform/tasks", json=draft, headers=owner.headers)
    assert made.status_code == 201
    assert (made.json()["runs_needed"], made.json()["priority"], len(made.json()["spec_hash"])) == (12, 3, 64)
    wrong = client.post("/api/platform/tasks", json={**draft, "spec_yaml": "kind: magic"}, headers=owner.headers)
    assert (wrong.status_code, wrong.json()["error_code"]) == (422, "bad_spec")
    local = draft["spec_yaml"].replace("{name: planted_induction}", "{path: /etc/passwd}")
    refused = client.post("/api/platform/tasks", json={**draft, "dataset_name": None, "spec_yaml": local}, headers=owner.headers)
    assert "local file" in refused.json()["message"]


def test_asking_for_work_again_leases_no_second_shard(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada = join("ada")
    first = client.get("/api/platform/tasks/next", headers=ada.headers)
    again = client.get("/api/tasks/next", headers=ada.headers)
    assert first.status_code == 200
    assert first.json() == again.json()
    assert first.headers["cache-control"] == "no-store"
    assert len(client.get("/api/platform/leases", headers=ada.headers).json()) == 1
    assert {"lease_id", "task_id", "name", "spec", "spec_yaml", "spec_hash", "ttl_s"} <= set(first.json())
    assert client.get("/api/platform/tasks/next").status_code == 401


def test_leases_are_renewed_and_given_back_by_their_holder_only(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada, bob = join("ada"), join("bob")
    lease = client.post("/api/platform/leases", json={"task_id": task["id"]}, headers=ada.headers)
    assert lease.status_code == 201
    place = f"/api/platform/leases/{lease.json()['lease_id']}"
    assert client.post(f"{place}/heartbeat", headers=bob.headers).status_code == 404
    later = client.post(f"{place}/heartbeat", headers=ada.headers)
    assert later.json()["expires_at"] > lease.json()["expires_at"]
    assert client.delete(place, headers=ada.headers).status_code == 204
    lost = client.post(f"{place}/heartbeat", headers=ada.headers)
    assert (lost.status_code, lost.json()["error_code"]) == (409, "conflict")


def test_without_work_there_is_nothing_and_a_time_to_come_back(client: TestClient, join: Join) -> None:
    ada = join("ada")
    for answer in (client.get("/api/tasks/next", headers=ada.headers), client.post("/api/leases", headers=ada.headers)):
        assert (answer.status_code, answer.content) == (204, b"")
        assert int(answer.headers["retry-after"]) > 0


def test_sending_twice_is_sending_once(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada = join("ada")
    body = body_for(client.get("/api/tasks/next", headers=ada.headers).json())
    first, again = send(client, ada, body, key="k"), send(client, ada, body, key="k", prefix="/api")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = send(client, ada, body.model_copy(update={"result_summary": {"x": 1}}), key="k")
    assert (other.status_code, other.json()["details"]["reason"]) == (422, "key_reused")
    second = send(client, ada, body)
    assert (second.status_code, second.json()["details"]["reason"]) == (422, "duplicate")


def test_without_an_idempotency_key_the_body_is_the_key(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada = join("ada")
    body = body_for(client.get("/api/tasks/next", headers=ada.headers).json()).model_dump_json()
    headers = {**ada.headers, "Content-Type": "application/json"}
    assert [client.post("/api/results", content=body, headers=headers).status_code for _ in range(2)] == [201, 200]


def test_what_cannot_count_is_refused_with_a_reason(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada = join("ada")
    shard = client.get("/api/tasks/next", headers=ada.headers).json()
    wrong = send(client, ada, body_for({**shard, "spec_hash": "0" * 64}))
    assert wrong.status_code == 422
    assert wrong.json()["error_code"] == "submission_refused"
    assert wrong.json()["details"]["reason"] == "spec_mismatch"
    assert client.get("/api/results").json() == []
    broken = client.post("/api/results", json={"task_id": shard["task_id"]}, headers=ada.headers)
    assert (broken.status_code, broken.json()["error_code"]) == (422, "invalid_request")
    assert send(client, ada, body_for(shard)).status_code == 201


def test_results_are_found_by_person_time_and_place(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    ada, bob = join("ada"), join("bob")
    for person in (ada, bob):
        shard = client.get("/api/tasks/next", headers=person.headers).json()
        send(client, person, body_for(shard, telemetry={"layers": [1]}))
    ask = lambda **query: client.get("/api/results", params=query, headers=ada.headers).json()  # noqa: E731
    assert len(ask()) == 2
    assert [one["username"] for one in ask(contributor_id="me")] == ["ada"]
    assert [one["username"] for one in ask(contributor_id=bob.id)] == ["bob"]
    assert len(ask(task_id=task["id"], layer=1, head=2)) == 2
    assert ask(layer=7) == []
    assert ask(to="2001-01-01T00:00:00Z") == []
    assert len(ask(**{"from": "2001-01-01T00:00:00Z"})) == 2
    assert len(ask(limit=1, offset=1)) == 1
    full = client.get(f"/api/results/{ask()[0]['id']}").json()
    assert full["telemetry_data"] == {"layers": [1]}
    assert len(full["result_full"]["effects"]["sites"]) == 6
    assert {"preset_used", "hardware_info", "duration_seconds", "result_summary", "spec_hash", "is_valid", "validation_notes"} <= set(full)
    assert client.get("/api/results", params={"contributor_id": "me"}).status_code == 401


def test_a_profile_shows_runs_and_badges_and_no_address(client: TestClient, join: Join, task: dict[str, Any]) -> None:
    people = [join("ada"), join("bob")]
    fill(client, people, task["id"])
    shown = client.get(f"/api/platform/contributors/{people[0].id}")
    assert shown.json()["runs_completed"] == len(shown.json()["runs"]) == 6
    assert shown.json()["badges"][0]["id"] == "runs_1"
    assert "example.org" not in shown.text
    assert client.get(f"/api/contributors/{uuid4()}").status_code == 404


def test_runs_are_private_until_shared(client: TestClient, join: Join, owner: Member) -> None:
    ada, bob = join("ada"), join("bob")
    made = client.post("/api/runs", json={"spec": SPEC.model_dump(mode="json"), "name": "mine"}, headers=ada.headers)
    assert made.status_code == 201, made.text
    place = f"/api/runs/{made.json()['id']}"
    assert client.get(place, headers=ada.headers).json()["status"] == "queued"
    assert client.get("/api/runs", headers=ada.headers).json()["total"] == 1
    for stranger in (bob.headers, {}):
        assert client.get(place, headers=stranger).status_code == 404
        assert client.get("/api/runs", headers=stranger).json()["items"] == []
    assert client.post(f"{place}/cancel", headers=bob.headers).status_code == 404
    assert client.post(f"{place}/cancel", headers=ada.headers).json()["status"] == "cancelled"
    assert client.get(place, headers=owner.headers).status_code == 200


def test_a_selftest_is_a_run_and_never_a_task(client: TestClient, owner: Member) -> None:
    text = "kind: selftest\nmodel: {id: planted-induction}\n"
    made = client.post("/api/runs", json={"spec_yaml": text, "preset": "cpu_sanity"}, headers=owner.headers)
    assert (made.status_code, made.json()["kind"]) == (201, "selftest")
    shown = client.get(f"/api/runs/{made.json()['id']}", headers=owner.headers).json()
    assert (shown["spec"]["kind"], shown["spec"]["limits"]["layers"]) == ("selftest", 5)
    assert client.get("/api/runs", params={"kind": "selftest"}, headers=owner.headers).json()["total"] == 1
    refused = client.post("/api/platform/tasks", json={"name": "t", "spec_yaml": text}, headers=owner.headers)
    assert (refused.status_code, refused.json()["error_code"]) == (422, "bad_spec")
    assert "'selftest' says something of one machine" in refused.json()["message"]


def test_only_the_owner_runs_on_files_of_this_machine(client: TestClient, join: Join, owner: Member, lab: Any) -> None:
    local = {"spec": {**SPEC.model_dump(mode="json"), "dataset": {"path": "/etc/passwd"}}}
    refused = client.post("/api/runs", json=local, headers=join("ada").headers)
    assert (refused.status_code, refused.json()["error_code"]) == (403, "not_allowed")
    assert client.post("/api/runs", json=local, headers=owner.headers).status_code == 201
    object.__setattr__(lab, "settings", lab.settings.model_copy(update={"mode": "hosted"}))
    assert client.post("/api/runs", json=local, headers=owner.headers).status_code == 403
    other = {"spec": {**SPEC.model_dump(mode="json"), "model": {"id": "microsoft/phi-2", "revision": "a" * 40}}}
    listed = client.post("/api/runs", json=other, headers=owner.headers)
    assert "philab-micro" in listed.json()["message"]


def test_files_of_a_run_are_saved_not_shown(client: TestClient, join: Join, lab: Any) -> None:
    from uuid import UUID

    from db.schema import Artifact

    ada = join("ada")
    made = client.post("/api/runs", json={"spec": SPEC.model_dump(mode="json")}, headers=ada.headers).json()
    digest = lab.store.put(b"<script>alert(1)</script>")
    with lab.database.session() as session:
        session.add(Artifact(run_id=UUID(made["id"]), name="page.html", sha256=digest, size_bytes=25, media_type="text/html"))
    place = f"/api/runs/{made['id']}/artifacts"
    got = client.get(f"{place}/page.html", headers=ada.headers)
    assert got.content == b"<script>alert(1)</script>"
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert client.get(f"{place}/page.html").status_code == 404
    assert client.get(f"{place}/..%2f..%2fsecret-key", headers=ada.headers).status_code == 404


def test_health_and_version(client: TestClient) -> None:
    assert client.get("/api/health").json()["status"] == "ok"
    version = client.get("/api/version").json()
    assert version["limits"]["body_bytes"] == 2 * 1024 * 1024
    assert version["limits"]["telemetry_bytes"] == 512 * 1024


def test_a_database_that_is_away_is_said_in_one_sentence(client: TestClient, lab: Any) -> None:
    from db.connection import Database

    away = Database(lab.database.url.set(host="127.0.0.1", port=1, query={}))
    object.__setattr__(lab, "database", away)
    assert client.get("/api/health").status_code == 503
    answer = client.get("/api/tasks")
    assert (answer.status_code, answer.json()["error_code"]) == (503, "database_unavailable")
    away.close()
