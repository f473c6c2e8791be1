"""A person's own function as an edit: local, never data. Its text is kept with the runs that it was in place for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor

from engine.errors import SpecError
from engine.hooks.anatomy import Anatomy
from engine.hooks.sites import Site
from engine.lab.source import source_of
from engine.lab.watch import Mark, watch_of
from engine.models.loading import LoadedModel

Function = Callable[[Tensor], Tensor]
"""From an activation to what takes its place, of the same shape, type and device."""


@contextmanager
def own_edit(loaded: LoadedModel, function: Function, sites: Sequence[Site]) -> Iterator[None]:
    """Inside the block the activation at each site is what the function makes of it.

    The function is given a copy, [batch, pos, width] at most sites, or the part that belongs to the site's head or unit.

    Raises:
        SpecError: no site is named, a site names a layer or head that the model lacks; in the forward pass, the function gave back
            something that does not fit.
        UnknownAnatomy: the model has no such site.
    """
    if not sites:
        raise SpecError("a function needs to know where it works.", next_step="Say at='blocks.0.hook_resid_post', or another site.")
    for site in sites:
        loaded.anatomy.check(site)
    sources = tuple(source_of(function, "edit", at=_written(site)) for site in sites)
    with loaded.lock, ExitStack() as stack:
        for site in sites:
            loaded.wiring.refuse_unreachable(site, loaded.anatomy)
        stack.enter_context(watch_of(loaded).marked(Mark(sources=sources)))
        for site in sites:
            touch = partial(_touched, function=function, site=site, anatomy=loaded.anatomy)
            stack.enter_context(loaded.wiring.at(loaded.anatomy.place(site), touch, "edits", loaded.anatomy))
        yield


def _written(site: Site) -> str:
    head = "" if site.head is None else f" head {site.head}"
    unit = "" if site.unit is None else f" unit {site.unit}"
    return site.hook_name + head + unit


def _touched(x: Tensor, function: Function, site: Site, anatomy: Anatomy) -> Tensor:
    given = anatomy.part(x, site)
    # A copy, because a function that writes into what it is given would otherwise change what others have read.
    made = function(given.clone())
    _refuse_misfit(made, given, function, site)
    if site.head is None and site.unit is None:
        return made
    out = x.clone()
    anatomy.part(out, site).copy_(made)
    return out


def _refuse_misfit(made: object, given: Tensor, function: Function, site: Site) -> None:
    name = getattr(function, "__name__", type(function).__name__)
    where = f"the function '{name}' at '{site.hook_name}' gave back"
    if not isinstance(made, Tensor):
        raise SpecError(f"{where} {type(made).__name__}; expected a tensor.", next_step="Return the changed tensor.")
    for what in ("shape", "dtype", "device"):
        mine, wanted = getattr(made, what), getattr(given, what)
        if mine != wanted:
            mine, wanted = (tuple(mine), tuple(wanted)) if what == "shape" else (mine, wanted)
            raise SpecError(f"{where} {what} {mine}; expected {wanted}.", next_step="Keep shape, type and device.")
