"""Who looks at the page. Local: the owner. Hosted: a visitor until they sign in with an API key."""

import streamlit as st

from app.services import services
from db.contributors import authenticate
from db.keys import read_pepper
from db.viewer import Viewer
from engine.errors import LabError, NotAllowed

KEY = "signed_in_with"


def viewer() -> Viewer:
    """The person behind this browser tab. A key that was revoked meanwhile makes them a visitor again.

    Raises:
        NotAllowed: somebody on another machine looks at a lab that takes everybody for its owner.
    """
    running = services()
    if running.owner is not None:
        _refuse_other_machines()
        return running.owner
    key = st.session_state.get(KEY)
    if not key:
        return Viewer.visitor()
    try:
        return _authenticated(key)
    except LabError:
        sign_out()
        return Viewer.visitor()


def sign_in(key: str) -> Viewer:
    """Signs this tab in.

    Raises:
        NotAllowed: the key is wrong, expired or revoked.
    """
    who = _authenticated(key.strip())
    st.session_state[KEY] = key.strip()
    return who


def sign_out() -> None:
    """Makes this tab a visitor's again."""
    st.session_state.pop(KEY, None)


def _refuse_other_machines() -> None:
    """A second lock: the server of a local lab listens on loopback anyway. Streamlit gives no address for this machine itself."""
    address = st.context.ip_address
    if isinstance(address, str):
        raise NotAllowed(
            f"this lab runs in mode 'local', which has no sign-in, so it does not serve {address}.",
            next_step="Start it with PHILAB_MODE=hosted to share it.",
        )


def _authenticated(key: str) -> Viewer:
    running = services()
    with running.database.session() as session:
        return authenticate(session, key, read_pepper(running.settings))
