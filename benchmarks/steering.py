"""Steered texts, as several libraries write them: one vector added behind one layer, the likeliest token each time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.generation import Stop, complete
from engine.hooks.batch import Batch
from engine.hooks.edit import Edit
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel

LENGTH = 16
"""Tokens of a prompt."""
NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What is added, and where."""

    site: Site
    vector: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Steering":
        """A random vector as long as the stream usually is there, in the middle of the model."""
        layer, width = loaded.anatomy.n_layers // 2, loaded.anatomy.d_model
        return cls(site=Site(layer=layer, name="resid_post"), vector=torch.randn(width, generator=torch.Generator().manual_seed(1)))

    def edit(self, strength: float) -> Edit:
        """The edit of that strength."""
        return Edit(site=self.site, op="add", value=self.vector, strength=strength)


def ours(loaded: LoadedModel, batch: Batch, variants: Sequence[Sequence[Edit]]) -> Tensor:
    """[variants * batch, new tokens]."""
    prompts = batch.input_ids.tolist()
    written = complete(loaded, prompts, max_new_tokens=NEW_TOKENS, variants=variants, stop=Stop(eos=False)).written
    return torch.tensor([text.ids for text in written])


def plain(loaded: LoadedModel, batch: Batch) -> Tensor:
    """[batch, new tokens]: transformers' own generate, unsteered unless a hook is in place."""
    found = loaded.model.generate(  # type: ignore[operator]
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[:, batch.width :]


@contextmanager
def hooked(loaded: LoadedModel, steering: Steering, strength: float) -> Iterator[None]:
    """What people write without a library."""

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + strength * steering.vector

    handle = loaded.anatomy.place(steering.site).module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def lens(bridge: Any, batch: Batch, steering: Steering, strength: float) -> Tensor:
    """[batch, new tokens]: TransformerLens."""

    def add(x: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return x + strength * steering.vector

    with bridge.hooks(fwd_hooks=[(steering.site.hook_name, add)]), torch.no_grad():
        found = bridge.generate(batch.input_ids, max_new_tokens=NEW_TOKENS, do_sample=False, stop_at_eos=False, verbose=False)
    return found[:, batch.width :]
