"""Prompts under variants, as rows of one batch: all prompts under the first variant, then all under the second, and so on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from engine.errors import SpecError
from engine.hooks.bind import Reference, bind
from engine.hooks.change import Change
from engine.hooks.edit import RULES, Edit
from engine.hooks.wiring import Addressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Which row is which."""

    n_prompts: int
    n_variants: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.n_prompts * self.n_variants

    def prompt(self, row: int) -> int:
        """Index of a row's prompt."""
        return row % self.n_prompts

    def variant(self, row: int) -> int:
        """Index of a row's variant."""
        return row // self.n_prompts

    def of(self, variant: int) -> slice | None:
        """The rows of a variant; None where they are all."""
        return None if self.n_variants == 1 else slice(variant * self.n_prompts, (variant + 1) * self.n_prompts)

    def each(self, values: Sequence[float]) -> Float[Tensor, " rows"]:
        """One number for each variant, as one for each row."""
        return torch.tensor(values).repeat_interleave(self.n_prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """What edits are bound to beside the rows: the arguments of `engine.hooks.bind.bind`."""

    loaded: Addressed
    tensors: Mapping[str, Tensor] | None = None
    reference: Reference | None = None

    def bound(self, edit: Edit, rows: slice | None) -> list[Change]:
        """The change that an edit means; none at its neutral strength."""
        return bind([edit], self.loaded, tensors=self.tensors, rows=rows, reference=self.reference)


def changes_of(variants: Sequence[Sequence[Edit]], rows: Rows, ties: Ties) -> list[Change]:
    """The changes of all variants. What differs in strength only becomes one change with a strength for each row.

    Args:
        variants: edits in order, for each variant.
        rows: which rows a variant has.
        ties: what the edits are bound to. A value with three axes, and what a reference draws, has one table for each prompt.

    Raises:
        SpecError: an edit does not fit the model.
        UnknownAnatomy: the model has no such site.
    """
    found = list[Change]()
    for slot in zip_longest(*variants):
        alike: dict[Edit, dict[int, Edit]] = {}
        for variant, edit in enumerate(slot):
            if edit is not None:
                alike.setdefault(edit.model_copy(update={"strength": None}), {})[variant] = edit
        for group in alike.values():
            found += _changes(group, rows, ties)
    return found


def _changes(group: dict[int, Edit], rows: Rows, ties: Ties) -> list[Change]:
    """The changes of edits, by variant, that differ in strength only."""
    loudest = max(group.values(), key=lambda edit: not edit.neutral)
    neutral = RULES[loudest.op].neutral
    everywhere = len(group) == rows.n_variants
    if everywhere and len({edit.amount for edit in group.values()}) == 1:
        return [_for_all(change, rows) for change in ties.bound(loudest, None)]
    if everywhere or (len(group) > 1 and neutral is not None):
        amounts = [group[at].amount if at in group else neutral or 0.0 for at in range(rows.n_variants)]
        return [replace(_for_all(change, rows), strength=rows.each(amounts)) for change in ties.bound(loudest, None)]
    return [change for variant, edit in group.items() for change in ties.bound(edit, rows.of(variant))]


def _for_all(change: Change, rows: Rows) -> Change:
    """The change with its tables, if it has one for each prompt, repeated for each variant."""
    value = change.value
    if value is None or value.dim() < 3 or rows.n_variants == 1:
        return change
    if len(value) != rows.n_prompts:
        raise SpecError(
            f"a value for {len(value)} prompts does not fit {rows.n_prompts} prompts at site '{change.site.hook_name}'.",
            next_step="Give one table for each prompt, or one for all.",
        )
    return replace(change, value=value.repeat(rows.n_variants, 1, 1))


def narrowed(change: Change, left: Int[Tensor, " left"]) -> Change | None:
    """The change for a batch of which only these rows are left, ascending; None if none of them is its own."""
    begin, end = (0, int(left[-1]) + 1) if change.rows is None else (change.rows.start, change.rows.stop)
    own = left[(left >= begin) & (left < end)]
    if not len(own):
        return None
    at = int((left < begin).sum())
    value, strength = change.value, change.strength
    if value is not None and value.dim() > 2 and len(value) > 1:
        value = value[(own - begin).to(value.device)]
    if isinstance(strength, Tensor) and strength.numel() > 1:
        strength = strength[(own - begin).to(strength.device)]
    return replace(change, rows=change.rows and slice(at, at + len(own)), value=value, strength=strength)
