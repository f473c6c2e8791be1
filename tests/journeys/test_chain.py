"""The whole chain in a real browser, on a real database, with a real model: task → run here → run → finding."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.plugin_app import Lab

pytestmark = pytest.mark.browser

SPEC = """
kind: ablation
model: {id: planted-induction}
dataset: {name: planted_induction, rows: {start: 0, stop: 24}}
metric: target_loss
"""


@pytest.fixture
def page(browser: Any, lab: Lab) -> Iterator[Any]:
    """A dark browser tab; the test fails when a page failed or logged a script error."""
    with browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme="dark", base_url=lab.url) as context:
        opened = context.new_page()
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(str(error)))
        yield opened
        assert opened.get_by_test_id("stException").count() == 0
        assert not faults


def open_page(page: Any, path: str, heading: str | re.Pattern[str] = re.compile(".")) -> None:
    from playwright.sync_api import expect

    page.goto(path)
    expect(page.get_by_role("heading", name=heading, level=1)).to_be_visible()


def settled(page: Any) -> None:
    """Waits until the script has run and what is loaded late is there."""
    page.wait_for_function("document.querySelector('[data-test-script-state]')?.dataset.testScriptState === 'notRunning'")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(1200)


def create_task(page: Any, name: str) -> None:
    from playwright.sync_api import expect

    open_page(page, "/tasks", "Tasks")
    page.get_by_test_id("stExpander").get_by_text("New task").click()
    page.locator(".st-key-start_from").get_by_role("combobox").click()
    page.get_by_role("option", name="Paste your own").click()
    field = page.get_by_role("textbox", name="Spec (YAML or JSON)")
    expect(field).to_have_value("")
    field.fill(SPEC)
    field.press("Control+Enter")
    expect(page.get_by_text("12 runs in all")).to_be_visible()
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("textbox", name="Name").press("Tab")
    for label, value, told in (("Shards", "3", "6 runs in all"), ("Replicas", "1", "3 runs in all")):
        page.get_by_role("spinbutton", name=label).fill(value)
        page.get_by_role("spinbutton", name=label).press("Enter")
        expect(page.get_by_text(told)).to_be_visible()
    page.get_by_role("button", name="Create the task").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()


def test_from_an_empty_lab_to_a_run_that_counts(page: Any) -> None:
    from playwright.sync_api import expect

    create_task(page, "Who carries it?")
    assert "id=" in page.url
    page.get_by_role("button", name="Run all 3 shards I have not done").click()
    expect(page.get_by_text("3 of 3 runs accepted")).to_be_visible(timeout=120_000)
    page.reload()
    expect(page.get_by_text("3 of 3 runs accepted")).to_be_visible()

    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    page.get_by_role("link", name=re.compile("Who carries it.* shard 1 of 3")).click()
    expect(page.get_by_text("2 of 8 heads have a 95 % interval that excludes 0")).to_be_visible()
    assert "/run?id=" in page.url

    page.get_by_role("link", name="Findings", exact=True).click()
    expect(page.get_by_role("heading", name="Findings", level=1)).to_be_visible()
    expect(page.get_by_text("No effect is claimed yet.")).to_be_visible()
    expect(page.get_by_text("1 contributor of at least 3")).to_be_visible()


def test_a_run_is_started_watched_and_saved_as_a_picture(page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    open_page(page, "/runs?spec=planted_heads", "Runs")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("heading", name="Planted heads", level=1)).to_be_visible()
    expect(page.get_by_text("hurts most")).to_be_visible(timeout=120_000)
    for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("CSV", b"site,")):
        with page.expect_download() as waiting:
            page.locator(f".st-key-heat-map-{kind.lower()}").get_by_role("button").click()
        file = tmp_path / f"chart.{kind.lower()}"
        waiting.value.save_as(file)
        assert file.read_bytes().startswith(start)


def test_a_wrong_spec_is_explained_and_starts_nothing(page: Any) -> None:
    from playwright.sync_api import expect

    open_page(page, "/runs?spec=planted_heads", "Runs")
    page.get_by_role("textbox", name="Spec (YAML or JSON)").fill("kind: ablation\nmetric: vibes")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_test_id("stAlert")).to_contain_text("dataset")
    assert "/runs" in page.url


def test_findings_show_the_planted_heads_with_interval_and_reason(page: Any, answered_task: UUID) -> None:
    from playwright.sync_api import expect

    open_page(page, f"/findings?task={answered_task}", "Findings")
    expect(page.get_by_text("Taking away L0H1 changes")).to_be_visible()
    expect(page.get_by_text("hardware class of at least 2")).to_be_visible()
    expect(page.locator(".st-key-chart-pooled svg.marks, .st-key-chart-pooled canvas").first).to_be_visible()
    page.get_by_role("link", name="What was asked").click()
    expect(page.get_by_text("9 of 9 runs accepted")).to_be_visible()


def test_filters_are_in_the_address(page: Any, answered_task: UUID) -> None:
    from playwright.sync_api import expect

    open_page(page, "/tasks", "Tasks")
    page.get_by_role("radiogroup").get_by_text("completed").click()
    page.wait_for_url("**/tasks?status=completed")
    expect(page.get_by_role("link", name="Which heads copy?")).to_be_visible()
    open_page(page, "/tasks?status=archived", "Tasks")
    expect(page.get_by_text("No task has this status.")).to_be_visible()


def paths(task: UUID, run: str) -> list[str]:
    return [
        "/",
        "/tasks",
        f"/tasks?id={task}",
        "/runs",
        "/runs?spec=planted_heads",
        f"/run?id={run}",
        f"/findings?task={task}",
        "/leaderboard",
    ]


@pytest.fixture
def a_run(lab: Lab, answered_task: UUID) -> str:
    import requests

    answer = requests.get(f"{lab.url}/api/platform/results", params={"task_id": str(answered_task), "limit": "1"}, timeout=20).json()
    return (answer["results"] if isinstance(answer, dict) else answer)[0]["run_id"]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_page_has_an_accessibility_fault_in_either_theme(browser: Any, lab: Lab, answered_task: UUID, a_run: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found: list[str] = []
    with browser.new_context(viewport={"width": 1360, "height": 1000}, color_scheme=scheme, base_url=lab.url) as context:
        page = context.new_page()
        for path in paths(answered_task, a_run):
            open_page(page, path)
            settled(page)
            violations = Axe().run(page).response["violations"]
            found += [f"{path}: {one['id']} at {one['nodes'][0]['html'][:200]}" for one in violations]
    assert not found, "\n".join(found)


def test_nothing_is_fetched_from_elsewhere_and_a_phone_needs_no_sideways_scrolling(
    browser: Any, lab: Lab, answered_task: UUID, a_run: str
) -> None:
    elsewhere: list[str] = []
    with browser.new_context(viewport={"width": 390, "height": 844}, base_url=lab.url) as context:
        page = context.new_page()
        page.on("request", lambda request: None if request.url.startswith((lab.url, "data:", "blob:")) else elsewhere.append(request.url))
        for path in paths(answered_task, a_run):
            open_page(page, path)
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), path
    assert not elsewhere


def test_a_hosted_visitor_reads_and_can_start_nothing(browser: Any, start_lab: Any, short_folder: Any) -> None:
    from playwright.sync_api import expect

    with start_lab(short_folder("hosted"), PHILAB_MODE="hosted") as hosted, browser.new_context(base_url=hosted.url) as context:
        page = context.new_page()
        open_page(page, "/tasks", "Tasks")
        expect(page.get_by_label("API key")).to_be_visible()
        expect(page.get_by_text("No task yet.")).to_be_visible()
        assert page.get_by_text("New task").count() == 0
        open_page(page, "/runs", "Runs")
        expect(page.get_by_text("No public runs yet.")).to_be_visible()
        assert page.get_by_text("New run").count() == 0
        page.get_by_label("API key").fill("plk_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_test_id("stAlert").first).to_contain_text("not valid")
