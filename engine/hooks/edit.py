"""Changes of a forward pass, as values: a site, an operation, and a tensor beside it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from engine.hooks.anatomy import Addressed, Anatomy, Place
from engine.hooks.replaced import first, with_first
from engine.hooks.sites import Site

Op = Literal["zero", "set", "add"]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change of a forward pass.

    Attributes:
        site: where; a `z` site with a head means that head's slice only.
        op: `zero`, or `set` to a value, or `add` a value.
        value: tensor that broadcasts to the site's part, [batch, pos, width]; None for `zero`.
        rows: rows of the batch that are changed; all when None.
    """

    site: Site
    op: Op
    value: Tensor | None = None
    rows: slice | None = None

    def __post_init__(self) -> None:
        """A value is there exactly when the operation needs one."""
        assert (self.value is None) == (self.op == "zero"), f"op '{self.op}' with value={self.value is not None}"


def changed(x: Tensor, edit: Edit, anatomy: Anatomy) -> Tensor:
    """A new tensor: `x` [batch, pos, width] with the edit applied. `x` itself stays as it is."""
    out = x.clone()
    part = out if edit.rows is None else out[edit.rows]
    if edit.site.head is not None:
        part = part[..., anatomy.head_slice(edit.site.head)]
    _change_in_place(part, edit)
    return out


def _change_in_place(part: Tensor, edit: Edit) -> None:
    match edit.op:
        case "zero":
            part.zero_()
        case "set":
            part.copy_(edit.value)  # type: ignore[arg-type]
        case "add":
            part.add_(edit.value)  # type: ignore[arg-type]


@contextmanager
def edited(loaded: Addressed, edits: Sequence[Edit]) -> Iterator[None]:
    """Inside the block every forward pass of the model is edited; at one site in the order given.

    Holds the model's lock, so that no other thread's run is edited too. Nothing is left on the model afterwards.

    Raises:
        SpecError: an edit names a layer or head that the model lacks.
        UnknownAnatomy: the model has no such site.
    """
    anatomy, at = loaded.anatomy, defaultdict[Place, list[Edit]](list)
    for edit in edits:
        anatomy.check(edit.site)
        at[anatomy.place(edit.site)].append(edit)
    with loaded.lock, ExitStack() as stack:
        for place, here in at.items():
            stack.enter_context(changing(place, _all_of(here, anatomy)))
        yield


def _all_of(edits: Sequence[Edit], anatomy: Anatomy) -> Change:
    def change(x: Tensor) -> Tensor:
        for edit in edits:
            x = changed(x, edit, anatomy)
        return x

    return change


@contextmanager
def changing(place: Place, change: Change) -> Iterator[None]:
    """Inside the block the tensor at a place is what `change` makes of it."""
    handle = _register_in(place.module, change) if place.side == "in" else _register_out(place.module, change)
    try:
        yield
    finally:
        handle.remove()


def _register_in(module: nn.Module, change: Change) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _register_out(module: nn.Module, change: Change) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_first(output, change(first(output)))

    return module.register_forward_hook(hook)
