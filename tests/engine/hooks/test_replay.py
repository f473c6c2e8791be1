"""What a replay leaves out, and that it leaves nothing out that an edit can change."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from engine.hooks.batch import Batch
from engine.hooks.bind import bind
from engine.hooks.edit import Edit
from engine.hooks.positions import Index, Last
from engine.hooks.replay import Variant
from engine.hooks.sites import Site, SiteName
from engine.hooks.sweep import naive_sweep, sweep
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13, 30], [2, 2, 40, 41, 7]]


@dataclass
class LastLogit:
    """The logit of token 7 in the last column."""

    positions: Tensor | None

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 7]


def _edit(name: SiteName, layer: int | None, *, head: int | None = None, at: Index | Last | None = None) -> Edit:
    chosen = {} if at is None else {"positions": at}
    return Edit(site=Site(layer=layer, name=name, head=head), op="scale", strength=0.5, **chosen)


LOW: dict[str, Sequence[Edit]] = {
    "a head": [_edit("z", 0, head=1)],
    "a head at one token": [_edit("z", 1, head=2, at=Index(index=(0,)))],
    "the embeddings": [_edit("embed", None)],
    "the stream at one token": [_edit("resid_pre", 1, at=Last())],
    "patterns": [_edit("pattern", 0, head=0)],
    "two layers": [_edit("mlp_out", 0), _edit("neurons", 1)],
}
"""Edits below the last layer."""
TOP: dict[str, Sequence[Edit]] = {
    "a head": [_edit("z", 2, head=1)],
    "a head at one token": [_edit("z", 2, head=1, at=Last())],
    "values": [_edit("v", 2, head=0)],
    "the MLP": [_edit("mlp_out", 2)],
    "the stream": [_edit("resid_post", 2)],
    "the final norm": [_edit("final", None)],
    "the logits": [_edit("logits", None)],
    "a low and a high site": [_edit("z", 0, head=0), _edit("resid_post", 2)],
}
"""Edits that reach into it, or behind it."""


def _swept(loaded: LoadedModel, batch: Batch, variants: Sequence[Variant], readout: LastLogit) -> Tensor:
    values = torch.full((len(variants), batch.size), torch.nan)
    for part in sweep(loaded, batch, variants, readout, variants_per_forward=2):
        values[list(part.variants)] = part.values
    return values


def test_one_read_position_is_the_naive_loop(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS, side="left")
    readout, edits = LastLogit(torch.tensor([batch.width - 1])), [*LOW.values(), *TOP.values()]
    variants = [bind(each, loaded) for each in edits]
    torch.testing.assert_close(_swept(loaded, batch, variants, readout), naive_sweep(loaded, batch, variants, readout), atol=5e-6, rtol=0)
    assert hook_count(loaded.model) == 0


@pytest.mark.parametrize("changed", LOW)
def test_the_last_layer_is_done_where_it_is_read_only(llama: LoadedModel, changed: str) -> None:
    batch, widths = Batch.of(PROMPTS, side="left"), list[int]()
    readout = LastLogit(torch.tensor([batch.width - 1]))
    parts = sweep(llama, batch, [bind(LOW[changed], llama)], readout)
    next(parts)  # the clean run

    def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        widths.append(args[0].shape[1])

    top = llama.anatomy.blocks[-1]
    assert top.attn_out_proj is not None
    assert top.mlp is not None
    handles = [module.register_forward_pre_hook(note) for module in (top.attn_out_proj, top.mlp)]
    list(parts)
    for handle in handles:
        handle.remove()
    assert widths[-2:] == [1, 1]
