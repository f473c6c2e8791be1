"""Which tokens the forward pass at hand is about: their ids, their place in their own text, and where the prompt ends.

A hook inside a model sees columns of a tensor. With a key-value cache these are the newest token only, and with padding on the left
they begin at another number in each row. A watch on the model notes what every call is given, so that edits can speak of tokens.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from engine.errors import SpecError
from engine.hooks.batch import Batch
from engine.hooks.positions import AfterFirst, All, And, Generated, Index, Last, Not, Or, Positions, Prompt, Slice, Special, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """The tokens known so far, those of the call at hand at the end.

    Attributes:
        ids: token ids; -1 where only embeddings were given.
        real: False at padding.
        prompt: tokens in each row's prompt.
        columns: how many of them, at the end, the call at hand computes.
        special: ids of the tokenizer's special tokens.
    """

    ids: Int[Tensor, "batch known"]
    real: Bool[Tensor, "batch known"]
    prompt: Int[Tensor, " batch"]
    columns: int
    special: tuple[int, ...] = ()

    @classmethod
    def of(cls, batch: Batch, *, special: tuple[int, ...] = ()) -> "TokenView":
        """The view of a whole batch of prompts."""
        real = batch.attention_mask.bool()
        return cls(ids=batch.input_ids, real=real, prompt=real.sum(-1), columns=batch.width, special=special)

    @property
    def index(self) -> Int[Tensor, "batch known"]:
        """Each token's index in its own text; that of padding means nothing."""
        return self.real.long().cumsum(-1) - 1

    def here(self, x: Tensor) -> Tensor:
        """The columns of the call at hand out of [batch, known]."""
        return x[:, x.shape[1] - self.columns :]

    def chosen(self, rule: Positions) -> Bool[Tensor, "batch known"]:
        """Where a rule chooses; never at padding."""
        return self._where(rule) & self.real

    def _where(self, rule: Positions) -> Tensor:
        index, prompt = self.index, self.prompt[:, None]
        match rule:
            case All():
                return self.real
            case Index():
                wanted = [prompt + at if at < 0 else torch.full_like(prompt, at) for at in rule.index]
                return torch.stack([index == at for at in wanted]).any(0)
            case Slice():
                return (index >= _from_end(rule.start, prompt, 0)) & (index < _from_end(rule.stop, prompt, torch.iinfo(torch.long).max))
            case Last():
                return index == prompt - 1
            case Prompt():
                return index < prompt
            case Generated():
                return index >= prompt
            case Tokens() | AfterFirst() | Special():
                return self._by_id(rule)
            case And():
                return torch.stack([self._where(each) for each in rule.of]).all(0)
            case Or():
                return torch.stack([self._where(each) for each in rule.of]).any(0)
            case Not():
                return ~self._where(rule.of)

    def _by_id(self, rule: Tokens | AfterFirst | Special) -> Tensor:
        if bool((self.ids < 0).any()):
            raise SpecError("the model was given embeddings, so tokens cannot be chosen by their ids.", next_step="Choose them by index.")
        wanted = self.special if isinstance(rule, Special) else rule.ids
        found = torch.isin(self.ids, torch.tensor(wanted, device=self.ids.device, dtype=self.ids.dtype)) & self.real
        return (found.long().cumsum(-1) - found.long()) > 0 if isinstance(rule, AfterFirst) else found


def _from_end(at: int | None, prompt: Tensor, default: int) -> Tensor:
    """A token index as it is, or counted from the end of the prompt."""
    return torch.full_like(prompt, default) if at is None else (prompt + at).clamp(min=0) if at < 0 else torch.full_like(prompt, at)


class Calls:
    """What the calls of a model so far were about; kept from one call to the next while a text grows.

    Attributes:
        view: the tokens of the call at hand; None before the first one.
        number: how many calls there were.
        kept: positions whose logits the call at hand computes, as the model was told; None for all.
    """

    def __init__(self, *, special: Sequence[int] = (), prompt_lengths: Sequence[int] | None = None) -> None:
        """`prompt_lengths` says where prompts end; otherwise all that the first call is given is prompt."""
        self.view: TokenView | None = None
        self.number = 0
        self.kept: Tensor | int | None = None
        self._special = tuple(special)
        self._prompt_lengths = prompt_lengths
        self._followed: Any = None

    @classmethod
    def at(cls, view: TokenView) -> "Calls":
        """The calls of a model that is in the middle of this one."""
        calls = cls(special=view.special)
        calls.view, calls.number = view, 1
        return calls

    @property
    def now(self) -> TokenView:
        """The view of the call at hand."""
        assert self.view is not None, "asked outside of a call"
        return self.view

    def note(self, kwargs: dict[str, Any]) -> None:
        """Takes down what the model is given, by the names of its arguments."""
        ids: Tensor | None = kwargs.get("input_ids")
        given = ids if ids is not None else _unnamed(kwargs["inputs_embeds"])
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        self._follow(cache)
        mask = kwargs.get("attention_mask")
        real = _real(mask, given, past)
        before = self.view if past else None
        self.view = self._continued(before, given, real, past) if past else self._begun(given, real)
        self.number += 1
        keep = kwargs.get("logits_to_keep")
        self.kept = None if isinstance(keep, int) and keep == 0 else keep

    def _follow(self, cache: Any) -> None:
        """Beam search lets rows go on with one another's texts; it tells the cache only, so we listen there."""
        own = getattr(cache, "reorder_cache", None)
        if own is None or cache is self._followed:
            return

        def reorder(rows: Tensor) -> None:
            own(rows)
            before = self.now
            self.view = replace(before, ids=before.ids[rows], real=before.real[rows], prompt=before.prompt[rows])

        self._followed, cache.reorder_cache = cache, reorder

    def _begun(self, ids: Tensor, real: Tensor) -> TokenView:
        lengths = real.sum(-1) if self._prompt_lengths is None else torch.as_tensor(self._prompt_lengths, device=ids.device)
        return TokenView(ids=ids, real=real, prompt=lengths, columns=ids.shape[1], special=self._special)

    def _continued(self, before: TokenView | None, ids: Tensor, real: Tensor, past: int) -> TokenView:
        if before is None or before.ids.shape != (ids.shape[0], past):
            raise SpecError(
                f"the model goes on after {past} tokens that it read before the edit began, so their places are not known.",
                next_step="Let the prompt run inside the edit as well, or generate with philab's own `generate`.",
            )
        return TokenView(ids=torch.cat([before.ids, ids], 1), real=real, prompt=before.prompt, columns=ids.shape[1], special=self._special)


def _unnamed(embeds: Tensor) -> Tensor:
    """Ids for tokens that were given as embeddings."""
    return torch.full(embeds.shape[:2], -1, device=embeds.device)


def _real(mask: Any, ids: Tensor, past: int) -> Tensor:
    """[batch, past + columns]: True at tokens."""
    shape = (ids.shape[0], past + ids.shape[1])
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=ids.device)
    if not isinstance(mask, Tensor) or mask.shape != shape:
        found = f"has shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise SpecError(
            f"the attention mask {found}, but the edit needs one number per token so far: {shape}.",
            next_step="Give a mask [batch, tokens] that is 1 at tokens and 0 at padding.",
        )
    return mask.to(ids.device).bool()


@contextmanager
def watched(model: nn.Module, calls: Calls) -> Iterator[None]:
    """Inside the block `calls` hears of every forward pass of the model, before anything is computed."""
    names = _argument_names(type(model))

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.note({**dict(zip(names, args, strict=False)), **kwargs})

    handle = model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@cache
def _argument_names(model_class: type[nn.Module]) -> tuple[str, ...]:
    """What a model's forward takes, in order, without `self`."""
    return tuple(inspect.signature(model_class.forward).parameters)[1:]
