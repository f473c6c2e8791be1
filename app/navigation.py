"""The pages in the order of the menu. A page stands here when it works."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import streamlit as st
from streamlit.navigation.page import Page

from app.services import services

PAGES_FOLDER = Path(__file__).resolve().parent.parent / "pages"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEntry:
    """One page: its file, and how the menu shows it.

    Attributes:
        name: file stem and path of the URL.
        help: what one can do there, one sentence.
        hidden: reached by links only, as detail pages are.
    """

    name: str
    title: str
    icon: str
    help: str
    hidden: bool = False


ENTRIES = (
    PageEntry(name="home", title="Home", icon="home", help="What this lab is, what is in it now, and where to start."),
    PageEntry(name="tasks", title="Tasks", icon="assignment", help="Questions that the community repeats: browse, create, run here."),
    PageEntry(name="runs", title="Runs", icon="science", help="Every execution of a spec: start one, watch it, read its result."),
    PageEntry(
        name="findings", title="Findings", icon="insights", help="What many runs agree on, with intervals and the reason for each status."
    ),
    PageEntry(name="leaderboard", title="Leaderboard", icon="trophy", help="Who has contributed, counted from accepted submissions."),
    PageEntry(name="run", title="Run", icon="science", help="One run: progress, result, provenance, files.", hidden=True),
)


def pages() -> dict[str, Page]:
    """All pages by name, for the menu and for links between pages."""
    return {entry.name: _page(entry) for entry in ENTRIES}


def _page(entry: PageEntry) -> Page:
    return st.Page(
        PAGES_FOLDER / f"{entry.name}.py",
        title=entry.title,
        icon=f":material/{entry.icon}:",
        url_path=entry.name,
        default=entry.name == "home",
        visibility="hidden" if entry.hidden else "visible",
        help=entry.help,
    )


def address() -> str:
    """Where other people and programs reach this instance."""
    if public := services().settings.public_url:
        return public.rstrip("/")
    seen = st.context.url
    parts = urlsplit(seen) if isinstance(seen, str) else None
    return f"{parts.scheme}://{parts.netloc}" if parts and parts.netloc else "http://localhost:8000"


def go(name: str, **query: str) -> None:
    """Opens another page with these query parameters; does not return."""
    st.switch_page(PAGES_FOLDER / f"{name}.py", query_params=query)


def link(name: str, label: str, *, icon: str | None = None, **query: str) -> None:
    """Draws a link to a page. `label` is markdown: text of strangers goes through `wording.escape` first."""
    entry = next(entry for entry in ENTRIES if entry.name == name)
    shown = icon or entry.icon
    st.page_link(PAGES_FOLDER / f"{name}.py", label=label, icon=f":material/{shown}:", query_params=query)
