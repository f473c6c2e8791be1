"""Who asks: the key in the header, one transaction per request, and how often they may ask."""

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader
from sqlalchemy.orm import Session

from app.api.limits import ANY, REGISTER, WRITE
from app.services import Services
from db.contributors import authenticate
from db.keys import read_pepper
from db.ratelimit import Limit, wait_s
from db.viewer import Viewer
from engine.errors import NotAllowed, RateLimited

_key_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="A key from POST /api/platform/register.")

Key = Annotated[str | None, Security(_key_header)]


class Turn(NamedTuple):
    """One transaction of one viewer; it is committed before the answer goes out."""

    session: Session
    viewer: Viewer


class Asking:
    """The request as the routes see it."""

    def __init__(self, request: Request, key: Key) -> None:
        self._request = request
        self._key = key
        get_services: Callable[[], Services] = request.app.state.services
        self.services = get_services()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A transaction as whoever asks; without a key that is a visitor.

        Raises:
            NotAllowed: there is a key, but it is not valid.
        """
        with self.services.database.session() as session:
            viewer = Viewer.visitor() if self._key is None else self._authenticated(session, self._key)
            yield Turn(session, viewer)

    @contextmanager
    def own_turn(self) -> Iterator[Turn]:
        """A transaction as a contributor who may change things; counts against their limit of writes.

        Raises:
            NotAllowed: there is no valid key.
            RateLimited: they change too much at once.
        """
        self.need_key()
        with self.services.database.session() as session:
            viewer = self._authenticated(session, self._key or "")
        self.take(WRITE, str(viewer.contributor_id))
        with self.services.database.session() as session:
            yield Turn(session, viewer)

    def need_key(self) -> None:
        """Refuses a request without a key.

        Raises:
            NotAllowed: there is none.
        """
        if self._key is None:
            self._request.state.needs_key = True
            raise NotAllowed("this needs a key in the header X-API-Key.", next_step="POST /api/platform/register gives one.")

    def take(self, limit: Limit, who: str) -> None:
        """Counts one request in a transaction of its own, so that failed requests count as well.

        Raises:
            RateLimited: it is one too many; the text says when to come back.
        """
        with self.services.database.session() as session:
            wait = wait_s(session, limit, who)
        if wait > 0:
            raise RateLimited("too many requests.", retry_after_s=wait, next_step=f"Come back in {wait:.0f} s.")

    def take_registration(self) -> None:
        """Counts one registration from this address."""
        self.take(REGISTER, address(self._request))

    def _authenticated(self, session: Session, key: str) -> Viewer:
        self._request.state.needs_key = True
        viewer = authenticate(session, key, read_pepper(self.services.settings))
        self._request.state.needs_key = False
        return viewer


Asked = Annotated[Asking, Depends()]


def limited(request: Request, asking: Asked) -> None:
    """Counts a request against its address; the two routes that watch over the instance are free."""
    if not request.url.path.endswith(("/health", "/version")):
        asking.take(ANY, address(request))


def address(request: Request) -> str:
    """The network address that a limit counts: an IPv4 address, or the /64 of an IPv6 one. Headers of the client are not believed."""
    host = request.client.host if request.client else "unknown"
    try:
        known = ipaddress.ip_address(host)
    except ValueError:
        return host[:100]
    return str(known) if known.version == 4 else str(ipaddress.ip_network((known, 64), strict=False).network_address)
