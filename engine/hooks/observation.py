"""What one small forward pass through the first layer shows of how a model's blocks are built."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.hooks.inputs import input_device
from engine.hooks.replaced import first, passed_on, replaced, with_first


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one forward through the first layer showed."""

    d_model: int
    layer_gives_tuple: bool
    attn_gives_tuple: bool
    parallel: bool
    exchangeable: bool
    attn_norm: str | None
    mlp_norm: str | None
    middle: str | None


class _Call(NamedTuple):
    given: Tensor
    gave: Any


class Parts(NamedTuple):
    """The first layer and what was found in it by name."""

    layer: nn.Module
    attn: nn.Module | None
    attn_out_proj: nn.Module | None
    mlp: nn.Module | None


def observe(model: PreTrainedModel, bottom: Parts, above: Sequence[nn.Module]) -> Seen:
    """Runs two equal rows through the first layer, the second with its attention output disturbed; the layers above do nothing."""
    calls = dict[nn.Module, _Call]()
    watched = [bottom.layer, *bottom.layer.children(), *([bottom.attn_out_proj] if bottom.attn_out_proj is not None else [])]
    with ExitStack() as stack:
        for layer in above:
            stack.enter_context(replaced(layer, passed_on(as_tuple=False)))
        stack.enter_context(_noted(watched, calls, disturb=bottom.attn))
        _run_three_tokens(model)
    return _conclude(bottom, calls)


@contextmanager
def _noted(modules: Sequence[nn.Module], calls: dict[nn.Module, _Call], *, disturb: nn.Module | None) -> Iterator[None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module is disturb:
            output = with_first(output, _second_row_moved(first(output)))
        calls[module] = _Call(args[0] if args else kwargs["hidden_states"], output)
        return output

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield


def _second_row_moved(x: Tensor) -> Tensor:
    """A ramp, because a constant would vanish in a layer norm."""
    ramp = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
    return torch.stack([x[0], x[1] + ramp])


def _run_three_tokens(model: PreTrainedModel) -> None:
    ids = torch.tensor([[0, 1, 2]] * 2, device=input_device(model))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def _conclude(bottom: Parts, calls: dict[nn.Module, _Call]) -> Seen:
    layer, order = calls[bottom.layer], list(calls)
    children = {name: calls[child] for name, child in bottom.layer.named_children() if child in calls and not isinstance(child, nn.Dropout)}
    attn, mlp = _call_of(bottom.attn, calls), _call_of(bottom.mlp, calls)
    parallel = attn is not None and mlp is not None and torch.equal(mlp.given[0], mlp.given[1])
    in_order = attn is not None and mlp is not None and (parallel or order.index(bottom.attn) < order.index(bottom.mlp))  # type: ignore[arg-type]
    plain_mlp = mlp is not None and isinstance(mlp.gave, Tensor)
    attn_norm = _reader_of(attn, children)
    return Seen(
        d_model=layer.given.shape[-1],
        layer_gives_tuple=isinstance(layer.gave, tuple),
        attn_gives_tuple=attn is not None and isinstance(attn.gave, tuple),
        parallel=parallel,
        exchangeable=in_order and plain_mlp and _gives_the_same(attn, _call_of(bottom.attn_out_proj, calls)),
        attn_norm=attn_norm,
        mlp_norm=_reader_of(mlp, children),
        middle=None if parallel or attn is None else _reader_of_sum(layer, children.get(attn_norm or "", attn), children),
    )


def _call_of(module: nn.Module | None, calls: dict[nn.Module, _Call]) -> _Call | None:
    return None if module is None else calls.get(module)


def _reader_of(call: _Call | None, children: dict[str, _Call]) -> str | None:
    """The child of the layer that is given exactly what `call` gave: the norm behind it."""
    return next((name for name, other in children.items() if call is not None and other.given is first(call.gave)), None)


def _reader_of_sum(layer: _Call, added: _Call, children: dict[str, _Call]) -> str | None:
    """The child that is given the layer's input plus what attention added: the norm in the middle of the block."""
    total = layer.given + first(added.gave)
    return next((name for name, other in children.items() if other.given.shape == total.shape and torch.equal(other.given, total)), None)


def _gives_the_same(attn: _Call | None, projection: _Call | None) -> bool:
    """Whether attention ends with its output projection; the first row was not disturbed."""
    return attn is not None and projection is not None and torch.equal(first(attn.gave)[0], first(projection.gave)[0])
