"""A module's forward replaced for a while, so that work whose outcome is known is not done again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

MaybeTuple = Tensor | tuple[Any, ...] | list[Any]


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block the module answers with `forward`; afterwards with its own again, whatever happened.

    A forward that sits on the instance already (accelerate keeps one there) is put back, not deleted.
    """
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before


def answer(tensor: Tensor, *, as_tuple: int) -> Callable[..., MaybeTuple]:
    """A forward that always gives `tensor`; as the first of a tuple with so many items, the others None, where the caller unpacks one."""

    def forward(*_args: object, **_kwargs: object) -> MaybeTuple:
        return _packed(tensor, as_tuple)

    return forward


def passed_on(*, as_tuple: int) -> Callable[..., MaybeTuple]:
    """A layer's forward that gives its input back; as the first of a tuple with so many items where the model unpacks one."""

    def forward(hidden_states: Tensor, *_args: object, **_kwargs: object) -> MaybeTuple:
        return _packed(hidden_states, as_tuple)

    return forward


def _packed(tensor: Tensor, items: int) -> MaybeTuple:
    return (tensor, *[None] * (items - 1)) if items else tensor


def items_of(output: object) -> int:
    """How many items a module's output has; 0 for a plain tensor."""
    return len(output) if isinstance(output, tuple | list) else 0


def first(output: MaybeTuple) -> Tensor:
    """The tensor of a module's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first(output: MaybeTuple, tensor: Tensor) -> MaybeTuple:
    """The output with its tensor exchanged."""
    if isinstance(output, list):
        return [tensor, *output[1:]]
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
