"""A module's forward replaced for a while, so that work whose outcome is known is not done again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

MaybeTuple = Tensor | tuple[Any, ...]


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


def answer(tensor: Tensor, *, as_tuple: bool) -> Callable[..., MaybeTuple]:
    """A forward that always gives `tensor`, in a pair with None where the caller unpacks one."""

    def forward(*_args: object, **_kwargs: object) -> MaybeTuple:
        return (tensor, None) if as_tuple else tensor

    return forward


def passed_on(*, as_tuple: bool) -> Callable[..., MaybeTuple]:
    """A layer's forward that gives its input back."""

    def forward(hidden_states: Tensor, *_args: object, **_kwargs: object) -> MaybeTuple:
        return (hidden_states,) if as_tuple else hidden_states

    return forward


def first(output: MaybeTuple) -> Tensor:
    """The tensor of a module's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: MaybeTuple, tensor: Tensor) -> MaybeTuple:
    """The output with its tensor exchanged."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
