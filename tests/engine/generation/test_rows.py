"""Variants along the batch: what becomes one change, and which rows it is about."""

import pytest
import torch

from engine.errors import SpecError
from engine.generation.rows import Rows, Ties, changes_of, narrowed
from engine.hooks.bind import hash_of
from engine.hooks.change import Change
from engine.hooks.edit import Edit, TensorRef
from engine.hooks.positions import Last
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel

SITE = Site(layer=1, name="resid_post")
ADD = Edit(site=SITE, op="add", value=[1.0] * 32, strength=2.0)
ZERO = Edit(site=Site(layer=0, name="mlp_out"), op="zero")


def _changes(loaded: LoadedModel, *variants: list[Edit], n_prompts: int = 2) -> list[Change]:
    return changes_of(variants, Rows(n_prompts=n_prompts, n_variants=len(variants)), Ties(loaded=loaded))


def _strengths(change: Change) -> list[float]:
    assert isinstance(change.strength, torch.Tensor)
    return change.strength.tolist()


def test_strengths_of_one_edit_are_one_change(llama: LoadedModel) -> None:
    (change,) = _changes(llama, [], [ADD], [ADD.at_strength(0.5)], [ADD.at_strength(0.0)])
    assert change.rows is None
    assert _strengths(change) == [0, 0, 2, 2, 0.5, 0.5, 0, 0]


def test_what_all_variants_have_is_one_plain_change(llama: LoadedModel) -> None:
    changes = _changes(llama, [ADD, ZERO], [ADD, ZERO])
    assert [(change.op, change.rows, change.strength) for change in changes] == [("add", None, 2.0), ("zero", None, 1.0)]


def test_other_edits_have_rows_of_their_own(llama: LoadedModel) -> None:
    elsewhere = ADD.model_copy(update={"positions": Last()})
    changes = _changes(llama, [ADD], [elsewhere], [ZERO], [], [ZERO])
    assert [change.rows for change in changes] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(8, 10)]


def test_levels_without_a_neutral_one_are_set_apart(llama: LoadedModel) -> None:
    clamp = Edit(site=SITE, op="clamp", value=[1.0] * 32, strength=3.0)
    assert [change.rows for change in _changes(llama, [clamp], [clamp.at_strength(4.0)], [])] == [slice(0, 2), slice(2, 4)]
    (both,) = _changes(llama, [clamp], [clamp.at_strength(4.0)])
    assert _strengths(both) == [3, 3, 4, 4]


def test_a_cap_that_is_left_out_is_infinite(llama: LoadedModel) -> None:
    cap = Edit(site=SITE, op="cap", value=[1.0] * 32, strength=3.0)
    (change,) = _changes(llama, [cap], [], [cap.at_strength(1.0)])
    assert _strengths(change) == [3, 3, float("inf"), float("inf"), 1, 1]


def test_neutral_edits_are_nothing_but_are_checked(llama: LoadedModel) -> None:
    assert _changes(llama, [ADD.at_strength(0.0)], [ADD.at_strength(0.0)]) == []
    assert _changes(llama, [ADD.at_strength(0.0)], []) == []
    with pytest.raises(SpecError, match="does not fit"):
        _changes(llama, [Edit(site=SITE, op="add", value=[1.0], strength=0)])


def test_a_table_for_each_prompt_is_there_in_every_variant(llama: LoadedModel) -> None:
    tables = torch.randn(2, 5, 32)
    edit = Edit(site=SITE, op="add", value=TensorRef(sha256=hash_of(tables), shape=(2, 5, 32)))
    ties = Ties(loaded=llama, tensors={hash_of(tables): tables})
    (change,) = changes_of([[edit], [edit.at_strength(2.0)]], Rows(n_prompts=2, n_variants=2), ties)
    assert change.value is not None
    torch.testing.assert_close(change.value, torch.cat([tables, tables]))
    with pytest.raises(SpecError, match="2 prompts does not fit 3 prompts"):
        changes_of([[edit], [edit.at_strength(2.0)]], Rows(n_prompts=3, n_variants=2), ties)


def test_rows_that_are_left_keep_what_is_theirs() -> None:
    value, strength = torch.arange(4.0).view(4, 1, 1).expand(4, 2, 3), torch.arange(4.0)
    own = Change(site=SITE, op="add", value=value, strength=strength, rows=slice(2, 6))
    left = narrowed(own, torch.tensor([0, 3, 5, 7]))
    assert left is not None
    assert left.rows == slice(1, 3)
    assert left.value is not None
    assert left.value[:, 0, 0].tolist() == [1, 3]
    assert _strengths(left) == [1, 3]
    assert narrowed(own, torch.tensor([0, 1, 6])) is None
    everywhere = Change(site=SITE, op="add", value=torch.ones(3), strength=torch.arange(8.0))
    left = narrowed(everywhere, torch.tensor([0, 3, 5, 7]))
    assert left is not None
    assert left.rows is None
    assert _strengths(left) == [0, 3, 5, 7]
