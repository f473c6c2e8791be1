"""Queries, keys, values, scores and patterns: read and changed inside the model's own attention.

transformers lets a function be registered by name that every attention layer calls. Ours hands on to the kernel that the model
would have used, unless a layer's scores or pattern are wanted: then all layers compute them openly, as transformers' `eager` does.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine.errors import UnknownAnatomy
from engine.hooks.inputs import input_device
from engine.hooks.rounding import rounding_step

Inside = Literal["q", "k", "v", "scores", "pattern"]
Touch = Callable[..., Tensor]
"""Takes a tensor; of scores and patterns also, as a mask, which of their pairs of tokens may see each other."""
Taps = dict[Inside, Touch]
"""What is done to each tensor of one layer's attention: q, k, v [batch, pos, head, d_head]; scores, pattern [batch, head, query, key]."""

OPEN: frozenset[Inside] = frozenset({"scores", "pattern"})
"""Tensors that fused kernels never make."""
PREFIX = "philab_"

_by_module: dict[nn.Module, Taps] = {}
"""Attention module -> its taps, while they are in place; whoever puts them there holds the model's lock."""


@dataclass(slots=True)
class Tapped:
    """A model whose attention is tapped somewhere.

    Attributes:
        model: the model.
        kernels: its configs, each with the name of the attention kernel that it had before.
        modules: attention modules with taps.
    """

    model: PreTrainedModel
    kernels: list[tuple[Any, str | None]] = field(default_factory=list[tuple[Any, str | None]])
    modules: set[nn.Module] = field(default_factory=set[nn.Module])

    def tap(self, module: nn.Module, inside: Inside, touch: Touch) -> Callable[[], None]:
        """Passes one tensor of a module's attention through `touch`, until the returned function is called."""
        if not self.kernels:
            self.kernels = [(config, config._attn_implementation_internal) for config in _configs(self.model)]
        _by_module.setdefault(module, {})[inside] = touch
        self.modules.add(module)
        self._choose_kernel()
        return lambda: self._untap(module, inside)

    def _untap(self, module: nn.Module, inside: Inside) -> None:
        _by_module[module].pop(inside)
        if not _by_module[module]:
            del _by_module[module]
            self.modules.discard(module)
        self._choose_kernel()

    def _choose_kernel(self) -> None:
        """Our function in front of the model's kernel while there are taps, the kernel alone afterwards."""
        opened = any(OPEN & set(_by_module[module]) for module in self.modules)
        for config, own in self.kernels:
            config._attn_implementation_internal = own if not self.modules else _registered("eager" if opened else own or "eager")
        if not self.modules:
            self.kernels = []


def _configs(model: PreTrainedModel) -> list[Any]:
    found = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "_attn_implementation_internal")]
    return list({id(config): config for config in found}.values())


def _registered(own: str) -> str:
    """The name under which our function stands in for a kernel, with that kernel's kind of mask."""
    name = PREFIX + own.removeprefix(PREFIX)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_attention, own))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _attention(
    own: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in place of the kernel `own`."""
    taps = _by_module.get(module)
    if not taps:
        return _kernel(own, module)(module, query, key, value, attention_mask, **more)
    query, key, value = (_through(taps, name, x) for name, x in (("q", query), ("k", key), ("v", value)))
    if not OPEN & set(taps):
        return _kernel(own, module)(module, query, key, value, attention_mask, **more)
    return _openly(taps, module, query, key, value, attention_mask, **more)


def _through(taps: Taps, name: str, x: Tensor) -> Tensor:
    """A tap sees positions before heads, as TransformerLens does; the model has heads first."""
    tap = taps.get(cast(Inside, name))
    return x if tap is None else tap(x.transpose(1, 2)).transpose(1, 2)


def _kernel(own: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if own != "eager":
        return ALL_ATTENTION_FUNCTIONS[own]
    return sys.modules[type(module).__module__].eager_attention_forward


def _openly(
    taps: Taps,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: the scores are masked, then tapped; the pattern is tapped before it weighs the values.

    Pairs that the mask keeps from each other stay so: an edit must not let a token see what follows it, or padding.
    """
    _refuse_unknown(module, more)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    seen = attention_mask is None or attention_mask > torch.finfo(scores.dtype).min / 2
    within = seen if isinstance(seen, Tensor) else torch.ones_like(scores, dtype=torch.bool)
    scores = taps.get("scores", _same)(scores, within)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    pattern = taps.get("pattern", _same)(pattern, within)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


def _same(x: Tensor, _within: Tensor) -> Tensor:
    return x


def _refuse_unknown(module: nn.Module, more: dict[str, Any]) -> None:
    """Attention sinks and position biases go into the scores in ways of their own."""
    extra = [name for name in ("s_aux", "position_bias") if more.get(name) is not None]
    if extra or hasattr(module, "sinks"):
        raise UnknownAnatomy(
            f"{type(module).__name__} adds {extra[0] if extra else 'sinks'} to its attention scores, which the engine does not know.",
            next_step="Choose sites q, k, v or z instead of scores and pattern.",
        )


def unreachable(model: PreTrainedModel, modules: Sequence[nn.Module], inside: Inside) -> str | None:
    """Why a tensor inside attention cannot be reached; None if it can: every module passes it, and the logits stay as they are."""
    ids = torch.tensor([[0, 1, 2, 3]] * 2, device=input_device(model))
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=input_device(model))
    with torch.no_grad(), _undisturbed(model):
        plain = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        passed, again = _tapped_logits(model, modules, inside, {"input_ids": ids, "attention_mask": mask, "use_cache": False})
    if passed != set(modules):
        return f"{len(set(modules) - passed)} of its {len(modules)} attention layers do not go through transformers' attention interface"
    off, most = float((again - plain)[mask.bool()].abs().max()), float(plain[mask.bool()].abs().max())
    if off > min(200 * rounding_step(model), 0.5) * max(1.0, most):
        return f"written out, its attention gives other logits (by {off:.2g})"
    return None


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block nothing hears of the model's calls or changes them, whatever is hooked into it."""
    modules = list(model.modules())
    hooks = [(module, module._forward_pre_hooks, module._forward_hooks) for module in modules]
    taps = {module: _by_module.pop(module) for module in modules if module in _by_module}
    for module in modules:
        module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for module, before, after in hooks:
            module._forward_pre_hooks, module._forward_hooks = before, after
        _by_module.update(taps)


def _tapped_logits(
    model: PreTrainedModel, modules: Sequence[nn.Module], inside: Inside, given: dict[str, Any]
) -> tuple[set[nn.Module], Tensor]:
    """Which modules passed a tensor that is only looked at, and the logits of that pass."""
    passed, tapped = set[nn.Module](), Tapped(model)

    def note(module: nn.Module, x: Tensor, _within: Tensor | None = None) -> Tensor:
        passed.add(module)
        return x

    with ExitStack() as stack:
        for module in modules:
            stack.callback(tapped.tap(module, inside, partial(note, module)))
        return passed, model(**given).logits
