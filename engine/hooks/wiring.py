"""What is hooked into a model while somebody looks or edits: at each place edits first, in the order they came, then captures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import SpecError, UnknownAnatomy
from engine.hooks.anatomy import Anatomy
from engine.hooks.attention import Tapped, unreachable
from engine.hooks.call import Calls, watched
from engine.hooks.change import Change, changed
from engine.hooks.heads import contributions, output_weight
from engine.hooks.place import Place
from engine.hooks.replaced import first, with_first
from engine.hooks.sites import INSIDE_ATTENTION, PAIRS, Site

Touch = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class _Wire:
    """What is done at one place."""

    edits: list[Touch] = field(default_factory=list[Touch])
    captures: list[Touch] = field(default_factory=list[Touch])
    disconnect: Callable[[], None] = lambda: None

    def __call__(self, x: Tensor, within: Tensor | None = None) -> Tensor:
        """The tensor edited, at most where `within` is True; then captured."""
        before = x
        for touch in self.edits:
            x = touch(x)
        if within is not None and x is not before:
            x = torch.where(within, x, before)
        for touch in self.captures:
            x = touch(x)
        return x


@dataclass(slots=True)
class Wiring:
    """The wires of one model; empty when nobody looks. Whoever uses it holds the model's lock."""

    wires: dict[Place, _Wire] = field(default_factory=dict[Place, _Wire])
    tapped: Tapped | None = None
    reached: dict[bool, str | None] = field(default_factory=dict[bool, str | None])
    ways: frozenset[str] | None = None

    def refuse_unreachable(self, site: Site, anatomy: Anatomy) -> None:
        """Refuses a site inside attention if the model computes attention in a way of its own; found out once, by a small forward pass.

        Raises:
            UnknownAnatomy: it does.
        """
        if site.name not in INSIDE_ATTENTION:
            return
        opened = site.name in PAIRS
        if opened not in self.reached:
            modules = [block.attn for block in anatomy.blocks if block.attn is not None]
            self.reached[opened] = unreachable(anatomy.whole, modules, "pattern" if opened else "q")
        if reason := self.reached[opened]:
            raise UnknownAnatomy(f"site '{site.hook_name}' cannot be reached: {reason}.", next_step="Choose 'z' or 'attn_out'.")

    @property
    def edited(self) -> bool:
        """Whether somebody's edit is in place."""
        return any(wire.edits for wire in self.wires.values())

    @contextmanager
    def at(self, place: Place, touch: Touch, kind: Literal["edits", "captures"], anatomy: Anatomy) -> Iterator[None]:
        """Inside the block the tensor at a place is what `touch` makes of it."""
        wire = self.wires.get(place) or self._new_wire(place, anatomy)
        touches: list[Touch] = getattr(wire, kind)
        touches.append(touch)
        try:
            yield
        finally:
            touches.remove(touch)
            if not wire.edits and not wire.captures:
                wire.disconnect()
                del self.wires[place]

    def _new_wire(self, place: Place, anatomy: Anatomy) -> _Wire:
        wire = _Wire()
        wire.disconnect = self._connect(place, wire, anatomy)
        self.wires[place] = wire
        return wire

    def _connect(self, place: Place, wire: _Wire, anatomy: Anatomy) -> Callable[[], None]:
        match place.side:
            case "in":
                return _on_input(place.module, wire)
            case "out":
                return _on_output(place.module, wire)
            case "heads":
                return _on_heads(place.module, wire, anatomy)
            case "logits":
                return _on_logits(place.module, wire)
            case _:
                self.tapped = self.tapped or Tapped(anatomy.whole)
                return self.tapped.tap(place.module, place.side, wire)


@runtime_checkable
class Addressed(Protocol):
    """What edits, captures and sweeps need to know of a loaded model."""

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """Where its sites are."""
        ...

    @property
    def lock(self) -> RLock:
        """Held while anything is hooked into the model."""
        ...

    @property
    def wiring(self) -> Wiring:
        """What is hooked into it now."""
        ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the tokenizer's special tokens."""
        ...


@contextmanager
def changing(place: Place, change: Touch) -> Iterator[None]:
    """Inside the block the tensor that goes into a module, or comes out of it, is what `change` makes of it. Runs before any wire."""
    disconnect = _on_input(place.module, change, early=True) if place.side == "in" else _on_output(place.module, change, early=True)
    try:
        yield
    finally:
        disconnect()


def _on_input(module: nn.Module, change: Touch, *, early: bool = False) -> Callable[[], None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True, prepend=early).remove


def _on_output(module: nn.Module, change: Touch, *, early: bool = False) -> Callable[[], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_first(output, change(first(output)))

    return module.register_forward_hook(hook, prepend=early).remove


def _on_heads(projection: nn.Module, change: Touch, anatomy: Anatomy) -> Callable[[], None]:
    """What each head adds: the projection's output follows when it is changed."""
    weight = output_weight(projection, anatomy.n_heads)

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        before = contributions(args[0], weight.to(args[0].device))
        after = change(before)
        if before.requires_grad:  # gradients reach z through what the heads add, and only through that
            return output.detach() + (after.sum(2) - before.detach().sum(2))
        return output if after is before else output + (after - before).sum(2)

    return projection.register_forward_hook(hook).remove


def _on_logits(model: nn.Module, change: Touch) -> Callable[[], None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return with_first(output, change(first(output)))
        output.logits = change(output.logits)
        return output

    return model.register_forward_hook(hook).remove


@contextmanager
def edited(loaded: Addressed, changes: Sequence[Change], *, calls: Calls | None = None) -> Iterator[None]:
    """Inside the block every forward pass of the model is edited; at one site in the order given.

    Holds the model's lock, so that no other thread's run is edited too. Nothing is left on the model afterwards.

    Args:
        loaded: the model.
        changes: what is changed; `engine.hooks.bind.bind` makes them from edits.
        calls: what is known of the text so far, for who steps through it; a fresh one when left out.

    Raises:
        SpecError: a change names a layer or head that the model lacks.
        UnknownAnatomy: the model has no such site.
    """
    anatomy = loaded.anatomy
    for change in changes:
        for site in _sites(change):
            anatomy.check(site)
    with loaded.lock, ExitStack() as stack:
        for change in changes:
            for site in _sites(change):
                loaded.wiring.refuse_unreachable(site, anatomy)
        calls = calls or Calls(special=loaded.special_ids)
        if any(not change.everywhere for change in changes):
            stack.enter_context(watched(loaded.model, calls))
        conditions = _Conditions(calls)
        for change in changes:
            _place_change(stack, loaded, change, conditions)
        yield


def _sites(change: Change) -> list[Site]:
    """Where a change is made, and where it is decided."""
    return [change.site] if change.when is None or change.when.site is None else [change.site, change.when.site]


def _place_change(stack: ExitStack, loaded: Addressed, change: Change, conditions: "_Conditions") -> None:
    anatomy, wiring = loaded.anatomy, loaded.wiring
    if change.when is not None and change.when.site is not None:
        read, at = partial(conditions.read, change, anatomy), anatomy.place(change.when.site)
        kind = "edits" if at == anatomy.place(change.site) else "captures"  # beside the edit: just before it
        stack.enter_context(wiring.at(at, read, kind, anatomy))
    touch = partial(changed, change=change, anatomy=anatomy, calls=conditions.calls, met=conditions.met)
    stack.enter_context(wiring.at(anatomy.place(change.site), touch, "edits", anatomy))


class _Conditions:
    """Where conditions hold that are read at another site than their edit's, in the call at hand."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._held = dict[Change, tuple[int, Tensor]]()

    def read(self, change: Change, anatomy: Anatomy, x: Tensor) -> Tensor:
        """Notes where the condition of a change holds; the activation passes unchanged."""
        assert change.when is not None
        self._held[change] = (self.calls.number, change.when.holds(anatomy.part(x, _read_at(change))))
        return x

    def met(self, change: Change) -> Tensor:
        """Where it holds in this call.

        Raises:
            SpecError: the condition's site comes after the edit's.
        """
        number, held = self._held.get(change, (-1, torch.empty(0)))
        if number != self.calls.number:
            raise SpecError(
                f"the condition at '{_read_at(change).hook_name}' is known only after '{change.site.hook_name}' has been passed.",
                next_step="Read the condition at a lower site.",
            )
        return held


def _read_at(change: Change) -> Site:
    """Where the condition of a change is read."""
    return change.site if change.when is None or change.when.site is None else change.when.site
