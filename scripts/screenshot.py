"""Takes the README's picture: the lab of this machine, with whatever runs are in it, in a real browser."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.errors import LabError
from scripts.exit_code import command
from scripts.serving import free_port, wait_for

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@command
def main(argv: Sequence[str]) -> None:
    """Starts the app on a free port, opens a page and saves what is seen."""
    asked = _parser().parse_args(argv)
    out = Path(asked.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with app_running() as url:
        take(f"{url}{asked.page}", out, width=asked.width, height=asked.height, dark=asked.dark)
    print(f"wrote {out}")


@contextmanager
def app_running() -> Iterator[str]:
    """The address of an app of its own, on a free port, over this machine's data.

    Raises:
        CommunityUnreachable: it did not come up.
    """
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "scripts.app", "--port", str(port)], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/api/health", process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def take(url: str, out: Path, *, width: int, height: int, dark: bool) -> None:
    """Saves a page as PNG once it has stopped working.

    Raises:
        LabError: there is no browser.
    """
    from playwright.sync_api import Error, sync_playwright

    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    sandbox = [] if not hasattr(os, "geteuid") or os.geteuid() else ["--no-sandbox"]  # Chromium refuses root with a sandbox
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        except Error as missing:
            raise LabError("there is no Chromium here.", next_step="Run: .venv/bin/python -m playwright install chromium") from missing
        page = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=2, color_scheme="dark" if dark else "light"
        )
        page.goto(url)
        page.wait_for_selector("h1", timeout=60_000)
        page.wait_for_selector('[data-testid="stStatusWidget"]', state="detached", timeout=60_000)
        page.wait_for_timeout(1500)  # charts animate in
        page.screenshot(path=out)
        browser.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="screenshot", description="Save a page of this machine's lab as a picture.")
    parser.add_argument("--page", default="/findings", help="path of the page, with its query (default: /findings)")
    parser.add_argument("--out", default="docs/images/findings.png", metavar="FILE", help="default: docs/images/findings.png")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
