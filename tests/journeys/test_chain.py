"""The whole chain in a real browser, on a real database, with a real model: task → run here → run → finding."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin_app import Lab

pytestmark = pytest.mark.browser

PAGES = ["home", "tasks", "runs", "findings", "leaderboard"]
SPEC = """
kind: ablation
model: {id: planted-induction}
dataset: {name: planted_induction, rows: {start: 0, stop: 24}}
metric: target_loss
mode: zero
"""


@pytest.fixture
def page(browser: Any, lab: Lab) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme="dark", base_url=lab.url) as context:
        opened = context.new_page()
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(str(error)))
        yield opened
        assert opened.get_by_test_id("stException").count() == 0
        assert not faults


def open_page(page: Any, path: str, heading: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    page.goto(path)
    expect(page.get_by_role("heading", name=heading, level=1)).to_be_visible()


def settled(page: Any) -> None:
    """Waits until the script has run and nothing is being loaded any more."""
    page.wait_for_function("document.querySelector('[data-test-script-state]')?.dataset.testScriptState === 'notRunning'")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(1200)


def create_task(page: Any) -> None:
    from playwright.sync_api import expect

    open_page(page, "/tasks", "Tasks")
    page.get_by_text("New task").click()
    page.locator(".st-key-task_spec_choice").get_by_role("combobox").click()
    page.get_by_role("option", name="Paste your own").click()
    field = page.get_by_label("Spec (YAML or JSON)")
    expect(field).to_have_value("")
    field.fill(SPEC)
    field.press("Control+Enter")
    expect(page.get_by_text("12 runs in all")).to_be_visible()
    page.get_by_label("Name").fill("Which heads copy?")
    page.get_by_label("Name").press("Tab")
    for label, value in (("Shards", "3"), ("Replicas", "1")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
    expect(page.get_by_text("3 runs in all")).to_be_visible()
    page.get_by_role("button", name="Create the task").click()
    expect(page.get_by_role("heading", name="Which heads copy?")).to_be_visible()


def test_a_stranger_creates_a_task_runs_it_here_and_reads_the_result(page: Any) -> None:
    from playwright.sync_api import expect

    create_task(page)
    assert "id=" in page.url
    page.get_by_role("button", name="Run all 3 shards I have not done").click()
    expect(page.get_by_text("3 of 3 accepted")).to_be_visible(timeout=120_000)

    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    expect(page.get_by_role("gridcell", name="Which heads copy?").first).to_be_attached()
    page.locator(".st-key-runs_table canvas").first.click(position={"x": 12, "y": 52})
    expect(page.get_by_text("hurts most")).to_be_visible()
    expect(page.get_by_text("2 of 8 heads have a 95 % interval that excludes 0")).to_be_visible()

    page.get_by_role("link", name="Findings", exact=True).click()
    expect(page.get_by_role("heading", name="Findings", level=1)).to_be_visible()
    expect(page.get_by_text("No effect is claimed yet.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_no_page_has_an_accessibility_fault_in_either_theme(browser: Any, lab: Lab, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with browser.new_context(viewport={"width": 1360, "height": 1000}, color_scheme=scheme, base_url=lab.url) as context:
        page = context.new_page()
        for name in PAGES:
            open_page(page, f"/{name}" if name != "home" else "/", re.compile("."))
            settled(page)
            found = Axe().run(page).response["violations"]
            assert not found, f"{name} ({scheme}): " + "; ".join(f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found)


def test_a_hosted_visitor_reads_everything_and_can_start_nothing(browser: Any, start_lab: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    with start_lab(tmp_path, PHILAB_MODE="hosted") as hosted, browser.new_context(base_url=hosted.url) as context:
        page = context.new_page()
        open_page(page, "/tasks", "Tasks")
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.get_by_text("New task").count() == 0
        open_page(page, "/runs", "Runs")
        assert page.get_by_text("New run").count() == 0
        page.get_by_label("API key").fill("plk_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_test_id("stAlert")).to_be_visible()
