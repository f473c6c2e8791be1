"""What every check is given, and what it gives: a model with a few prompts, and a difference with its tolerance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from engine.errors import DatasetError
from engine.experiments.prompts import text_of
from engine.hooks.batch import Batch
from engine.hooks.inputs import input_device
from engine.models.loading import LoadedModel
from engine.text.datasets import Row

SUMMED = 5e-6
"""Rounding of a layer's dot products, which are added up in single precision whatever the weights are kept in."""
STORED = 4
"""Roundings of stored values that may add up in a layer."""
NEW_TOKENS = 8
"""Tokens that are generated behind a prompt; as many positions are left free."""
INT8_STEP = 1 / 127
"""Rounding of activations on their way into 8-bit weights. Weights of 4 bits are unpacked to the same numbers every time."""

RELATIVE = "of the largest value there"
"""Unit of a difference between vectors: each is measured by its own largest entry."""


class NotApplicable(Exception):
    """The model has nothing that this check could compare; the text says why."""


class Measured(NamedTuple):
    """What a check found.

    Attributes:
        difference: largest difference between the two ways.
        tolerance: up to here they agree.
        unit: what both are measured in.
        detail: where the largest difference is, or what else there is to know.
    """

    difference: float
    tolerance: float
    unit: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is checked.

    Attributes:
        loaded: the model; its lock is held while a check is at work.
        prompts: token ids of at least two prompts, each a little shorter than the one before.
        layers: layers that are gone through one by one.
        heads: how many heads of each of them.
        tolerance: how far two ways through the whole model may be apart, relative to a vector's largest entry.
        local: the same within one layer.
        at_first: what was on the model before the first check; see `fittings`.
        alone: logits of each prompt alone, by a plain call of the model.
        pause: called between forward passes; raises when somebody asked to stop.
    """

    loaded: LoadedModel
    prompts: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    heads: int
    tolerance: float
    local: float
    at_first: "Fittings"
    alone: tuple[Float[Tensor, "pos vocab"], ...]
    pause: Callable[[], None]

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.loaded.model

    def batch(self, *, side: Literal["left", "right"] = "right") -> Batch:
        """All prompts, padded on one side."""
        return Batch.of(self.prompts, side=side, device=self.loaded.device)

    def first(self) -> Batch:
        """The longest prompt alone, without padding."""
        return Batch.of(self.prompts[:1], device=self.loaded.device)

    def heads_of(self, layer: int) -> list[int]:
        """The heads of a layer that are gone through, others in each layer."""
        there_are = self.loaded.anatomy.n_heads
        return (
            sorted({(layer + step * max(1, there_are // max(1, self.heads))) % there_are for step in range(self.heads)})
            if there_are
            else []
        )


class Fittings(NamedTuple):
    """What can be left behind on a model.

    Attributes:
        hooks: hooks on all modules, and forwards that were replaced.
        kernels: names of the attention kernels in use.
    """

    hooks: int
    kernels: str


def fittings(model: PreTrainedModel) -> Fittings:
    """What is on the model now."""
    modules = list(model.modules())
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) + ("forward" in one.__dict__) for one in modules)
    kernels = {str(getattr(getattr(one, "config", None), "_attn_implementation", None)) for one in modules}
    return Fittings(hooks, ", ".join(sorted(kernels - {"None"})))


def plain(model: PreTrainedModel, tokens: Sequence[int]) -> Float[Tensor, "pos vocab"]:
    """Logits of one prompt by a call as anybody would make it, without the engine."""
    ids = torch.tensor([list(tokens)], device=input_device(model))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]


def tolerance_of(model: PreTrainedModel, *, layers: int) -> float:
    """How far two ways to the same vector may be apart behind so many layers, relative to its largest entry.

    A layer may add 5e-6 and four roundings of the coarsest precision that the model computes in. Roundings are independent of each
    other, so they grow with the square root of the number of layers.
    """
    unpacked = {getattr(module, "compute_dtype", None) for module in model.modules()}
    steps = [float(torch.finfo(dtype).eps) for dtype in {model.dtype, *unpacked} if isinstance(dtype, torch.dtype)]
    if any(weight.dtype == torch.int8 for weight in model.parameters()):
        steps.append(INT8_STEP)
    return math.sqrt(layers) * (SUMMED + STORED * max(steps))


def short_prompts(rows: Sequence[Row], loaded: LoadedModel, *, tokens: int) -> tuple[tuple[int, ...], ...]:
    """The beginnings of the rows' texts, each a little shorter than the one before, so that a batch of them is padded.

    Raises:
        DatasetError: a text has fewer than two tokens.
    """
    longest = tokens if loaded.max_length is None else max(2, min(tokens, loaded.max_length - NEW_TOKENS))
    cut = [_tokens(row, loaded)[: max(2, longest - index * max(1, longest // 6))] for index, row in enumerate(rows)]
    if len(cut) == 1:
        cut.append(cut[0][: max(1, len(cut[0]) // 2)])
    return tuple(sorted(cut, key=len, reverse=True))


def _tokens(row: Row, loaded: LoadedModel) -> tuple[int, ...]:
    found = tuple(loaded.tokenizer(text_of(row), verbose=False)["input_ids"])
    if len(found) < 2:
        raise DatasetError(f"row '{row.id}' has {len(found)} token(s); a self-test needs at least 2.", next_step="Leave the row out.")
    return found


def apart(one: Float[Tensor, "*rows width"], other: Float[Tensor, "*rows width"]) -> float:
    """The largest difference between two sets of vectors, each relative to the largest entry of the other's; NaN where one has a NaN."""
    assert one.shape == other.shape, f"{tuple(one.shape)} and {tuple(other.shape)} cannot be compared"
    one, other = one.float(), other.to(one.device).float()
    size = other.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return float(((one - other).abs().amax(-1) / size).max())


def largest(differences: Sequence[tuple[float, str]], tolerance: float, unit: str = RELATIVE) -> Measured:
    """The largest of several differences, and where it is.

    Raises:
        NotApplicable: there are none.
    """
    if not differences:
        raise NotApplicable("the model has nothing here to compare.")
    worst, where = max(differences, key=lambda entry: (entry[0] != entry[0], entry[0]))  # NaN is worse than any number
    return Measured(worst, tolerance, unit, f"{len(differences)} compared, {'all equal' if worst == 0 else f'largest {where}'}")
