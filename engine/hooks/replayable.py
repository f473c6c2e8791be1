"""Which of the shortcuts behind a sweep work in a model: asked of the model itself, once, by doing them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, cast

from torch import Tensor

from engine.hooks.anatomy import Anatomy
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.inputs import input_device
from engine.hooks.replay import Group, Replay, Way, clean_run, replayed, start_at
from engine.hooks.rounding import rounding_step
from engine.hooks.shortage import ran_out_of_memory
from engine.hooks.sites import Site
from engine.hooks.wiring import Addressed, edited

Exchange = Literal["z", "attn_out", "mlp_out"]
EXCHANGES: tuple[Exchange, ...] = ("z", "attn_out", "mlp_out")
SHORT, LONG = [1, 2, 3], [0, 1, 2, 3]


def working_ways(loaded: Addressed) -> frozenset[Way]:
    """The shortcuts that give what whole forward passes give in this model; found out once.

    Starting in the middle fails where a layer reads more than the residual stream: keys and values of a lower layer, an earlier
    pass through itself. Exchanging an output fails where a layer does something else with it than adding it once.
    """
    if loaded.wiring.ways is None:
        with loaded.lock:
            loaded.wiring.ways = _working(loaded)
    return cast("frozenset[Way]", loaded.wiring.ways)


def _working(loaded: Addressed) -> frozenset[Way]:
    anatomy, batch = loaded.anatomy, Batch.of([SHORT, LONG], device=input_device(loaded.model))
    starts = [Site(layer=layer, name="resid_pre") for layer in sorted({anatomy.n_layers // 2, anatomy.n_layers - 1} - {0})]
    with captured(loaded, starts) as stored:
        clean = forward(loaded.model, batch)
    if not all(_same(loaded, clean, _started(loaded, anatomy, batch, site.depth, stored[site]), batch) for site in starts):
        return frozenset()
    ways = EXCHANGES if anatomy.exchangeable else ()
    return frozenset({"general", *(way for way in ways if _exchanges(loaded, batch, way))})


def _exchanges(loaded: Addressed, batch: Batch, way: Exchange) -> bool:
    """Whether an output that is taken away by exchanging it gives the logits of one that is taken away by a hook."""
    layer, everything = loaded.anatomy.n_layers // 2, _Everything()
    variant, group = [Change(site=Site(layer=layer, name=way), op="zero")], Group(layer, way, [0])
    with edited(loaded, variant):
        by_hook = forward(loaded.model, batch)
    _, stored = clean_run(loaded, batch, everything, [group])
    run = Replay(loaded=loaded, batch=batch, readout=everything, stored=stored)
    return _same(loaded, by_hook, _tried(lambda: replayed(run, group, [variant])), batch)


class _Everything:
    """Reads all logits."""

    positions: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return logits


def _started(loaded: Addressed, anatomy: Anatomy, batch: Batch, layer: int, resid: Tensor) -> Tensor | None:
    """The logits of a forward pass that begins at a layer; None if the model cannot do that at all."""
    with ExitStack() as stack:
        start_at(stack, anatomy, layer, resid, {})
        return _tried(lambda: forward(loaded.model, batch))


def _tried(work: Callable[[], Tensor]) -> Tensor | None:
    """What a replay gives; None where the model's own code stumbles over what is not there."""
    try:
        return work()
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as stumbled:
        if ran_out_of_memory(stumbled):
            raise
        return None


def _same(loaded: Addressed, clean: Tensor, again: Tensor | None, batch: Batch) -> bool:
    if again is None:
        return False
    at_tokens = batch.attention_mask.bool()
    off, most = (clean - again)[at_tokens].abs().max(), clean[at_tokens].abs().max()
    return bool(off <= min(50 * rounding_step(loaded.model), 0.5) * max(1.0, float(most)))
