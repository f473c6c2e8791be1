"""An edit made ready for a model and a batch: tensors in place of numbers and names, and what it makes of an activation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from engine.errors import SpecError
from engine.hooks.anatomy import Anatomy
from engine.hooks.call import Calls
from engine.hooks.edit import RULES, Op
from engine.hooks.positions import EVERY, All, Positions
from engine.hooks.sites import GROUPED, PAIRS, Site


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """Asked at each token: is the product with a direction on the right side of a threshold?

    Attributes:
        feature: the direction, [width].
        site: where the activation is read; None for the change's own site.
        above: whether larger than the threshold is the right side.
    """

    feature: Tensor
    site: Site | None
    above: bool
    threshold: float

    def holds(self, x: Float[Tensor, "batch pos width"]) -> Bool[Tensor, "batch pos"]:
        """Where it does."""
        feature = self.feature.to(x.device)
        if feature.shape[-1] != x.shape[-1]:
            raise SpecError(
                f"the feature of a condition has {feature.shape[-1]} numbers, but the activation that it is asked of has {x.shape[-1]}.",
                next_step="Give one number for each column.",
            )
        product = x.to(feature.dtype) @ feature
        return product > self.threshold if self.above else product < self.threshold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """One change of a forward pass.

    Attributes:
        site: where; with a head, that head only, with a unit, that column only.
        op: what is done.
        value: what it is done with; broadcasts to [batch, pos, width]. A direction has length 1.
        strength: how much; a tensor [rows] gives each row of the batch its own.
        rows: rows of the batch that are changed; all when None.
        positions: tokens that are changed.
        keys: key tokens that are changed, at scores and pattern.
        when: condition at each token.
        by_token: whether the rows of a table in `value` are token indices; otherwise they are columns of the tensor.
    """

    site: Site
    op: Op
    value: Tensor | None = None
    strength: float | Tensor = 1.0
    rows: slice | None = None
    positions: Positions = EVERY
    keys: Positions = EVERY
    when: Condition | None = None
    by_token: bool = False

    def __post_init__(self) -> None:
        """A value is there exactly when the operation needs one."""
        needs = RULES[self.op].value != "no" or self.op in ("mean", "resample")
        assert (self.value is not None) == needs, f"op '{self.op}' with value={self.value is not None}"

    @property
    def everywhere(self) -> bool:
        """Whether all tokens are changed alike, so that nobody has to know which they are."""
        return isinstance(self.positions, All) and isinstance(self.keys, All) and self.when is None and not self._is_table

    @property
    def _is_table(self) -> bool:
        return self.by_token and self.value is not None and self.value.dim() > 1


Met = Callable[[Change], Tensor]
"""Where the condition of a change holds, [batch, pos], as read at another site in the call at hand."""


def changed(x: Tensor, change: Change, anatomy: Anatomy, calls: Calls | None = None, met: Met | None = None) -> Tensor:
    """A new tensor: the activation with the change made. `x` itself stays as it is."""
    whole = change.rows is None and change.site.head is None and change.site.unit is None
    if whole:
        return part_changed(x, change, calls, met)
    rows = slice(None) if change.rows is None else change.rows
    out, part = x.clone(), anatomy.part(x[rows], change.site)
    anatomy.part(out[rows], change.site).copy_(part_changed(part, change, calls, met))
    return out


def part_changed(x: Tensor, change: Change, calls: Calls | None, met: Met | None = None) -> Tensor:
    """What becomes of the part of the activation that a change is about."""
    if change.everywhere:
        return _OPS[change.op](x, _fitting(change.value, x, change), _amount(change, x))
    assert calls is not None, "this change depends on the tokens, so somebody must watch the calls"
    where = _where(x, change, calls, met)
    value, covered = _placed(x, change, calls)
    new = _OPS[change.op](x, _fitting(value, x, change), _amount(change, x))
    mask = where if covered is None else where & _spread(covered, x)
    return torch.where(mask, new, x)


def _fitting(value: Tensor | None, x: Tensor, change: Change) -> Tensor:
    """The value where the activation is, checked against its width."""
    if value is None:
        return x.new_zeros(())
    if not _fits(value, x):
        raise SpecError(
            f"a value of shape {tuple(value.shape)} does not fit site '{change.site.hook_name}' of shape {tuple(x.shape)}.",
            next_step=f"Give {x.shape[-1]} numbers, one for each column.",
        )
    return value.to(x.device, x.dtype)


def _fits(value: Tensor, x: Tensor) -> bool:
    """Whether the value is one number, or as wide as the activation and with axes that broadcast to its."""
    if value.dim() < 2:  # asking torch takes longer than a small model's layer
        return value.dim() == 0 or value.shape[-1] == x.shape[-1]
    try:
        return torch.broadcast_shapes(value.shape, x.shape) == x.shape and value.shape[-1] == x.shape[-1]
    except RuntimeError:
        return False


def _amount(change: Change, x: Tensor) -> Tensor | float:
    """The strength, one for all or one for each row."""
    if not isinstance(change.strength, Tensor):
        return change.strength
    if change.strength.numel() not in (1, x.shape[0]):
        raise SpecError(
            f"{change.strength.numel()} strengths do not fit {x.shape[0]} rows.",
            next_step="Give one strength for each row, or one for all.",
        )
    return change.strength.to(x.device).view(-1, *[1] * (x.dim() - 1))


def _where(x: Tensor, change: Change, calls: Calls, met: Met | None) -> Tensor:
    """Where the part is changed, broadcasting to it."""
    view = calls.now
    queries = _columns(view.chosen(change.positions), x, change, calls)
    if change.when is not None:
        elsewhere = None if met is None or change.when.site is None else met(change).to(x.device)
        queries = queries & (change.when.holds(x) if elsewhere is None else _columns_here(elsewhere, change, calls))
    if change.site.name not in PAIRS:
        return _spread(queries, x)
    keys = _rows(_newest(view.chosen(change.keys).to(x.device), x.shape[-1]), change)
    pairs = queries[:, :, None] & keys[:, None, :]
    return pairs if x.dim() == 3 else pairs[:, None]


def _columns(known: Tensor, x: Tensor, change: Change, calls: Calls) -> Tensor:
    """Of something known for all tokens so far, the rows and columns that the part of the activation has."""
    known = known.to(x.device)
    if change.site.name in GROUPED:
        return _rows(_newest(known, x.shape[1]), change)
    return _columns_here(calls.now.here(known), change, calls)


def _columns_here(here: Tensor, change: Change, calls: Calls) -> Tensor:
    """Of something known for all columns of the call at hand, those that are computed at the change's site."""
    kept = calls.kept
    if change.site.name == "logits" and kept is not None:
        here = here[:, -kept:] if isinstance(kept, int) else here[:, kept.to(here.device)]
    return _rows(here, change)


def _rows(known: Tensor, change: Change) -> Tensor:
    return known if change.rows is None else known[change.rows]


def _newest(mask: Tensor, columns: int) -> Tensor:
    """The last columns: keys and values may go back to the beginning, or only as far as a sliding window.

    Raises:
        SpecError: there are more columns than tokens, so it is not known which is which.
    """
    if columns > mask.shape[1]:
        raise SpecError(
            f"the model's cache has {columns} places for {mask.shape[1]} tokens, so the places of keys and values are not known.",
            next_step="Use a cache that grows with the text, which is transformers' default.",
        )
    return mask[:, mask.shape[1] - columns :]


def _spread(mask: Bool[Tensor, "batch pos"], x: Tensor) -> Tensor:
    """[batch, pos, 1, ...] beside an activation [batch, pos, ...]."""
    return mask.view(*mask.shape, *[1] * (x.dim() - 2))


def _placed(x: Tensor, change: Change, calls: Calls) -> tuple[Tensor | None, Tensor | None]:
    """The value with its table, if it has one, laid out along the columns; and the columns that the table covers."""
    value = change.value
    if value is None or not change._is_table:
        return value, None
    length = value.shape[-2]
    index = _columns(calls.now.index, x, change, calls)
    at = index.clamp(0, length - 1).to(value.device)
    rows = torch.arange(len(at), device=value.device)[:, None]
    if value.dim() == 3 and len(value) != len(at):
        raise SpecError(
            f"a value for {len(value)} rows does not fit a batch of {len(at)} at site '{change.site.hook_name}'.",
            next_step="Give one table for each row, or one for all.",
        )
    laid = value[at] if value.dim() == 2 else value[rows, at]
    covered = None if change.op == "resample" else (index >= 0) & (index < length)
    return (laid if x.dim() == 3 else laid.unsqueeze(2)), covered


def _along(x: Tensor, u: Tensor) -> Tensor:
    """The product of each vector with the direction, last axis kept."""
    return (x * u).sum(-1, keepdim=True)


def _set(x: Tensor, value: Tensor, _strength: Tensor | float) -> Tensor:
    return value.expand_as(x)


def _times(x: Tensor, strength: Tensor | float) -> Tensor:
    """The product in x's precision; the strength itself is not rounded to it, whether it is one number or one for each row."""
    return (strength * x).to(x.dtype)


def _clamp(x: Tensor, u: Tensor, level: Tensor | float) -> Tensor:
    return x + (level - _along(x, u)).to(x.dtype) * u


def _cap(x: Tensor, u: Tensor, level: Tensor | float) -> Tensor:
    product = _along(x, u)
    return x + (torch.minimum(product, torch.as_tensor(level, device=x.device, dtype=x.dtype)) - product) * u


_OPS: dict[Op, Callable[[Tensor, Tensor, Tensor | float], Tensor]] = {
    "zero": lambda x, _value, _strength: torch.zeros_like(x),
    "mean": _set,
    "resample": _set,
    "set": _set,
    "add": lambda x, value, strength: x + _times(value, strength),
    "scale": lambda x, _value, strength: _times(x, strength),
    "clamp": _clamp,
    "project_out": lambda x, u, _strength: x - _along(x, u) * u,
    "orthogonal": lambda x, u, strength: x + _times(_along(x, u), strength - 1) * u,
    "cap": _cap,
    "norm_add": lambda x, u, strength: x + _times(torch.linalg.vector_norm(x, dim=-1, keepdim=True), strength) * u,
}
