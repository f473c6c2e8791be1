"""Tensors read out of a forward pass, and their gradients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.hooks.anatomy import Anatomy
from engine.hooks.place import Place
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed, changing


class Captured(dict[Site, Tensor]):
    """What was read: site -> tensor of the last forward pass.

    Streams, outputs, z and neurons are [batch, pos, width]; head_out, q, k and v [batch, pos, head, width]; scores and pattern
    [batch, head, query, key]. A site with a head or a unit gives that part, without the axis of heads.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self._anatomy = anatomy
        self._whole = dict[Site, Tensor]()

    def keep(self, site: Site, x: Tensor, *, grad: bool) -> Tensor:
        """Takes a site's part of a tensor, which is given back as it is."""
        if grad:
            if not torch.is_grad_enabled():
                raise ModelError("gradients were asked for, but the model runs without them.", next_step="Use torch.enable_grad().")
            x = x if x.requires_grad else _begin_gradients(x)  # an edit put constants here
            x.retain_grad()
            self._whole[site] = x
            self[site] = self._anatomy.part(x, site)
        else:
            part = self._anatomy.part(x, site).detach()
            self[site] = part.clone() if self._anatomy.place(site) in self._anatomy.overwritten else part
        return x

    def grad(self, site: Site) -> Tensor:
        """The gradient at a site, of the shape of what was captured there.

        Raises:
            ModelError: there is none: `grad=True` was not asked for, or nothing went backward to that site.
        """
        whole = self._whole.get(site)
        if whole is None or whole.grad is None:
            raise ModelError(
                f"there is no gradient at '{site.hook_name}'.",
                next_step="Capture with grad=True, and call backward() on a number that the site goes into.",
            )
        return self._anatomy.part(whole.grad, site)


@contextmanager
def captured(loaded: Addressed, sites: Sequence[Site], *, grad: bool = False) -> Iterator[Captured]:
    """What the forward passes inside the block have at these sites, the last pass wins. Edits are seen, whenever they were put in place.

    Args:
        loaded: the model.
        sites: where to look.
        grad: keep what gradients need; run the model with gradients enabled then, and call `backward`.

    Raises:
        SpecError: a site names a layer or head that the model lacks.
        UnknownAnatomy: the model has no such site.
    """
    anatomy, got = loaded.anatomy, Captured(loaded.anatomy)
    for site in sites:
        anatomy.check(site)
    with loaded.lock, ExitStack() as stack:
        for site in sites:
            loaded.wiring.refuse_unreachable(site, anatomy)
        if grad:
            stack.enter_context(changing(Place(anatomy.embed, "out"), _begin_gradients))
        for site in dict.fromkeys(sites):
            stack.enter_context(loaded.wiring.at(anatomy.place(site), partial(got.keep, site, grad=grad), "captures", anatomy))
        yield got


def _begin_gradients(x: Tensor) -> Tensor:
    """Gradients begin here: at the embeddings, because the weights are frozen, and where an edit cut what came before off."""
    return x.detach().requires_grad_()


@contextmanager
def captured_places(places: Mapping[Any, Place], anatomy: Anatomy) -> Iterator[dict[Any, Tensor]]:
    """The same for places, as they are before any edit; the caller holds the model's lock."""
    got = dict[Any, Tensor]()

    def keep(key: object, x: Tensor) -> Tensor:
        got[key] = x.detach().clone() if places[key] in anatomy.overwritten else x.detach()
        return x

    with ExitStack() as stack:
        for key, place in places.items():
            stack.enter_context(changing(place, partial(keep, key)))
        yield got
