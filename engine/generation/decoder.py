"""The forward passes of a text that grows: each enters and leaves the edits, and between them nothing is hooked into the model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from engine.errors import ModelError
from engine.generation.rows import narrowed
from engine.hooks.batch import Batch, accepts
from engine.hooks.call import Calls
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.sites import PAIRS, Site
from engine.hooks.wiring import Addressed, edited


class Read(NamedTuple):
    """What the model makes of the tokens that it read last.

    Attributes:
        logits: of the next token, in single precision.
        captures: what was asked for, at the tokens read in this step.
    """

    logits: Float[Tensor, "rows vocab"]
    captures: dict[Site, Tensor]


class Decoder:
    """A batch of growing texts under edits.

    Attributes:
        rows: rows of the first batch that are still read.
    """

    def __init__(self, loaded: Addressed, batch: Batch, changes: Sequence[Change], *, capture: Sequence[Site], use_cache: bool) -> None:
        """Begins before the prompts, which are padded on the left. Without a cache everything is read again for each token."""
        self.rows = list(range(batch.size))
        self._loaded, self._all_changes, self._changes = loaded, list(changes), list(changes)
        self._capture, self._use_cache = tuple(capture), use_cache
        self._ids, self._mask = batch.input_ids, batch.attention_mask
        self._prompt = batch.attention_mask.sum(-1)
        self._cache: Any = None
        self._calls = Calls(special=loaded.special_ids)
        self._new = batch.width

    def add(self, tokens: Int[Tensor, " rows"]) -> None:
        """Another token for each row, to be read next."""
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)[:, None]], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        self._new = 1

    def read(self) -> Read:
        """What the model makes of the prompts, or of the tokens that were added last.

        Raises:
            ModelError: the model keeps no cache.
            SpecError: a change does not fit.
        """
        loaded = self._loaded
        if not self._use_cache:
            self._calls = Calls(special=loaded.special_ids, prompt_lengths=self._prompt.tolist())
        with loaded.lock, edited(loaded, self._changes, calls=self._calls), captured(loaded, self._capture) as got, torch.no_grad():
            output = loaded.model(**self._given())
        self._cache = self._kept(output)
        return Read(output.logits[:, -1].float(), {site: self._newest(site, x) for site, x in got.items()})

    def _given(self) -> dict[str, Any]:
        """The arguments of the next forward pass."""
        columns = self._new if self._use_cache else self._ids.shape[1]
        given: dict[str, Any] = {"input_ids": self._ids[:, -columns:], "attention_mask": self._mask, "use_cache": self._use_cache}
        if self._cache is not None:
            given["past_key_values"] = self._cache
        if accepts(self._loaded.model, "position_ids"):
            given["position_ids"] = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -columns:]
        if accepts(self._loaded.model, "logits_to_keep") and all(site.name != "logits" for site in self._capture):
            given["logits_to_keep"] = 1
        return given

    def _kept(self, output: Any) -> Any:
        if not self._use_cache:
            return None
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise ModelError(
                f"{type(self._loaded.model).__name__} gives no cache of keys and values.", next_step="Generate with use_cache=False."
            )
        return cache

    def _newest(self, site: Site, x: Tensor) -> Tensor:
        """Of what was captured, the tokens that were added last; keys and values come with all that is in the cache."""
        return x[..., -self._new :, :] if site.name in PAIRS else x[:, -self._new :]

    def drop(self, ended: Sequence[int]) -> None:
        """Reads some rows no more, by their place in `rows`, if the cache can do without them and nobody else looks."""
        with self._loaded.lock:
            watched = bool(self._loaded.wiring.wires)
        if not ended or watched or not _divisible(self._cache):
            return
        left = torch.tensor([at for at in range(len(self.rows)) if at not in set(ended)], device=self._ids.device)
        self.rows = [self.rows[at] for at in left.tolist()]
        if not self.rows:
            return
        self._ids, self._mask, self._prompt = self._ids[left], self._mask[left], self._prompt[left]
        narrow = [narrowed(change, torch.tensor(self.rows)) for change in self._all_changes]
        self._changes = [change for change in narrow if change is not None]
        self._calls = _only(self._calls, left)
        if self._cache is not None:
            self._cache.batch_select_indices(left)


def _divisible(cache: Any) -> bool:
    """Whether single rows can be taken out of a cache."""
    return cache is None or (isinstance(cache, DynamicCache) and all(isinstance(layer, DynamicLayer) for layer in cache.layers))


def _only(calls: Calls, left: Int[Tensor, " left"]) -> Calls:
    """What was known of all rows, for some of them."""
    view = calls.view
    if view is None:
        return calls
    return Calls.at(replace(view, ids=view.ids[left], real=view.real[left], prompt=view.prompt[left]))
