"""The Streamlit script of every page: title, menu, who one is, and the one place where a page's errors become sentences."""

from pathlib import Path

import streamlit as st

from app import queries
from app.forms import faults_shown
from app.navigation import pages
from app.services import services
from app.session import sign_in, sign_out, viewer
from app.wording import escape, sentence
from engine.errors import LabError

ICON = str(Path(__file__).resolve().parent / "static" / "icon.svg")


def draw_identity() -> None:
    """Who looks at the pages; where people sign in, the way to do it."""
    running = services()
    if not running.hosted:
        st.caption(":material/computer: Local lab. Everything stays on this machine.")
        return
    who = viewer()
    if who.contributor_id is None:
        draw_sign_in()
    else:
        st.markdown(f":material/account_circle: {escape(queries.username(who))}")
        st.caption(f"Role: {escape(who.role or '')}")
        st.button("Sign out", on_click=sign_out, key="sign_out")


def draw_sign_in() -> None:
    """A form that takes an API key. The key stays in this tab's memory on the server and is never shown."""
    with st.form("sign_in_form", border=False):
        key = st.text_input("API key", type="password", key="api_key_field", placeholder="plk_…", autocomplete="off")
        sent = st.form_submit_button("Sign in", width="stretch")
    st.caption("Browsing needs no key. 'philab contribute register' gives you one.")
    if sent:
        with faults_shown():
            sign_in(key)
            st.rerun()


def main() -> None:
    """Draws the frame and the page."""
    st.set_page_config(page_title="philab", page_icon=ICON, layout="wide")
    page = st.navigation(list(pages().values()))
    st.set_page_config(page_title=f"{page.title} · philab")
    st.logo(ICON, size="large")
    try:
        with st.sidebar:
            draw_identity()
        page.run()
    except LabError as wrong:
        st.error(sentence(wrong), icon=":material/error:")


main()
