"""Tensors read out of a forward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from engine.hooks.anatomy import Addressed, Place
from engine.hooks.edit import changing
from engine.hooks.sites import Site


@contextmanager
def captured(loaded: Addressed, sites: Sequence[Site]) -> Iterator[dict[Site, Tensor]]:
    """A dict that each forward pass inside the block fills: site -> [batch, pos, width], the last pass wins.

    A `z` site with a head gets that head's slice. Edits that were registered before are seen; register them first.

    Raises:
        SpecError: a site names a layer or head that the model lacks.
        UnknownAnatomy: the model has no such site.
    """
    for site in sites:
        loaded.anatomy.check(site)
    places = {site: loaded.anatomy.place(site) for site in sites}
    with loaded.lock, captured_places(places, part=lambda site, x: _part(loaded, site, x)) as got:
        yield got


def _part(loaded: Addressed, site: Site, x: Tensor) -> Tensor:
    return x if site.head is None else x[..., loaded.anatomy.head_slice(site.head)]


@contextmanager
def captured_places(places: Mapping[Any, Place], *, part: Callable[[Any, Tensor], Tensor] = lambda _, x: x) -> Iterator[dict[Any, Tensor]]:
    """The same for places, of which `part` is kept; the caller holds the model's lock."""
    got = dict[Any, Tensor]()

    def keep(key: object, x: Tensor) -> Tensor:
        got[key] = part(key, x).detach()
        return x

    with ExitStack() as stack:
        for key, place in places.items():
            stack.enter_context(changing(place, partial(keep, key)))
        yield got
