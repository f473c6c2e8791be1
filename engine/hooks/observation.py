"""What one small forward pass through the first layer shows of how a model's blocks are built."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.hooks.inputs import input_device
from engine.hooks.replaced import first, items_of, replaced, with_first


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one forward through the first layer showed; `carries`: a part gives the residual stream with what it adds to it."""

    d_model: int
    layer_gives_tuple: int
    attn_gives_tuple: int
    parallel: bool
    exchangeable: bool
    attn_carries: bool
    mlp_carries: bool
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
            stack.enter_context(replaced(layer, _like(bottom.layer, calls)))
        stack.enter_context(_noted(watched, calls, disturb=bottom.attn))
        _run_three_tokens(model)
    return _conclude(bottom, calls)


def _like(layer: nn.Module, calls: dict[nn.Module, "_Call"]) -> Callable[..., Any]:
    """A forward that gives its input back, packed as what the layer below gave."""

    def forward(hidden_states: Tensor, *_args: object, **_kwargs: object) -> Any:
        return with_first(calls[layer].gave, hidden_states)

    return forward


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


class Shapes(NamedTuple):
    """What goes into a module and comes out of it in a forward pass of two rows of three tokens.

    Attributes:
        given: shape of what goes in.
        gave: shape of what comes out.
        times: how often the module ran.
        overwritten: which of the two the model's own code changes in place afterwards.
    """

    given: tuple[int, ...] = ()
    gave: tuple[int, ...] = ()
    times: int = 0
    overwritten: frozenset[Literal["in", "out"]] = frozenset()

    @property
    def given_by_token(self) -> bool:
        """Whether it is given one vector per row and token."""
        return len(self.given) == 3 and self.given[:2] == (2, 3)

    @property
    def gave_by_token(self) -> bool:
        """Whether it gives one vector per row and token."""
        return len(self.gave) == 3 and self.gave[:2] == (2, 3)


def shapes(model: PreTrainedModel, modules: Iterable[nn.Module]) -> dict[nn.Module, Shapes]:
    """The shapes at these modules in a plain forward pass of two rows of three tokens."""
    seen, kept = defaultdict[nn.Module, Shapes](Shapes), list[tuple[nn.Module, Literal["in", "out"], Tensor, int]]()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, gave = args[0] if args else kwargs.get("hidden_states"), first(output)
        seen[module] = Shapes(_shape(given), _shape(gave), seen[module].times + 1)
        sides: tuple[tuple[Literal["in", "out"], object], ...] = (("in", given), ("out", gave))
        kept.extend((module, side, x, x._version) for side, x in sides if isinstance(x, Tensor))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        _run_three_tokens(model)
    for module, side, x, version in kept:
        if x._version != version:
            seen[module] = seen[module]._replace(overwritten=seen[module].overwritten | {side})
    return seen


def _shape(x: object) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, Tensor) else ()


def _conclude(bottom: Parts, calls: dict[nn.Module, _Call]) -> Seen:
    layer, order = calls[bottom.layer], list(calls)
    children = {name: calls[child] for name, child in bottom.layer.named_children() if child in calls and not isinstance(child, nn.Dropout)}
    attn, mlp = _call_of(bottom.attn, calls), _call_of(bottom.mlp, calls)
    parallel = attn is not None and mlp is not None and torch.equal(mlp.given[0], mlp.given[1])
    in_order = attn is not None and mlp is not None and (parallel or order.index(bottom.attn) < order.index(bottom.mlp))  # type: ignore[arg-type]
    plain_mlp = mlp is not None and isinstance(mlp.gave, Tensor)
    projection = _call_of(bottom.attn_out_proj, calls)
    attn_carries = _carries(layer, attn, projection)
    attn_norm = None if attn_carries else _reader_of(attn, children)
    return Seen(
        d_model=layer.given.shape[-1],
        layer_gives_tuple=items_of(layer.gave),
        attn_gives_tuple=0 if attn is None else items_of(attn.gave),
        parallel=parallel,
        exchangeable=in_order and plain_mlp and _gives_the_same(attn, projection),
        attn_carries=attn_carries,
        mlp_carries=mlp is not None and torch.equal(first(mlp.gave)[0], first(layer.gave)[0]),
        attn_norm=attn_norm,
        mlp_norm=_reader_of(mlp, children),
        middle=None if parallel else _middle(layer, attn, attn_norm, children, carried=attn_carries),
    )


def _middle(layer: _Call, attn: _Call | None, norm: str | None, children: dict[str, _Call], *, carried: bool) -> str | None:
    """The child that is given the residual stream between attention and MLP."""
    if attn is None or carried:
        return _reader_of(attn, children)
    return _reader_of_sum(layer, children.get(norm or "", attn), children)


def _carries(layer: _Call, attn: _Call | None, projection: _Call | None) -> bool:
    """Whether attention gives its output projection's result plus the layer's input; the first row was not disturbed."""
    if attn is None or projection is None or _gives_the_same(attn, projection):
        return False
    gave, projected, given = first(attn.gave)[0], first(projection.gave)[0], layer.given[0]
    return gave.shape == projected.shape == given.shape and torch.allclose(gave, projected + given, rtol=1e-3, atol=1e-5)


def _call_of(module: nn.Module | None, calls: dict[nn.Module, _Call]) -> _Call | None:
    return None if module is None else calls.get(module)


def _reader_of(call: _Call | None, children: dict[str, _Call]) -> str | None:
    """The child of the layer that is given exactly what `call` gave: the norm behind it."""
    return next((name for name, other in children.items() if call is not None and other.given is first(call.gave)), None)


def _reader_of_sum(layer: _Call, added: _Call, children: dict[str, _Call]) -> str | None:
    """The child that is given the layer's input plus what attention added: the norm in the middle of the block."""
    if first(added.gave).shape != layer.given.shape:
        return None
    total = layer.given + first(added.gave)
    return next((name for name, other in children.items() if other.given.shape == total.shape and torch.equal(other.given, total)), None)


def _gives_the_same(attn: _Call | None, projection: _Call | None) -> bool:
    """Whether attention ends with its output projection; the first row was not disturbed."""
    return attn is not None and projection is not None and torch.equal(first(attn.gave)[0], first(projection.gave)[0])
