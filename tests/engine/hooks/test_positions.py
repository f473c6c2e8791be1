"""Rules for tokens against a second reading of them: one token at a time, in plain Python."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from transformers import DynamicCache

from engine.hooks.batch import Batch
from engine.hooks.call import Calls, TokenView
from engine.hooks.positions import (
    AfterFirst,
    All,
    And,
    Generated,
    Index,
    Last,
    Not,
    Or,
    Positions,
    Prompt,
    Slice,
    Special,
    Tokens,
)

SPECIAL = (0, 7)
READ = TypeAdapter[Any](Positions)


def _possible(slice_: tuple[int | None, int | None]) -> bool:
    start, stop = slice_[0] or 0, slice_[1]
    return stop is None or stop > start or (stop < 0) != (start < 0)


def rules() -> st.SearchStrategy[Any]:
    """Any rule that there can be."""
    index = st.integers(-9, 9)
    ids = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
    ends = st.tuples(st.none() | index, st.none() | index).filter(_possible)
    single = st.one_of(
        st.sampled_from([All(), Last(), Prompt(), Generated(), Special()]),
        st.lists(index, min_size=1, max_size=3).map(lambda found: Index(index=tuple(found))),
        ends.map(lambda pair: Slice(start=pair[0], stop=pair[1])),
        ids.map(lambda found: Tokens(ids=found)),
        ids.map(lambda found: AfterFirst(ids=found)),
    )

    def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        nots = inner.filter(lambda rule: not isinstance(rule, All)).map(lambda rule: Not(of=rule))
        return several.map(lambda of: And(of=of)) | several.map(lambda of: Or(of=of)) | nots

    return st.recursive(single, composed, max_leaves=5)


def chosen_one_by_one(rule: Any, ids: list[int], prompt: int) -> list[bool]:
    """Which tokens of one text a rule chooses, found token by token."""

    def chooses(rule: Any, at: int) -> bool:
        match rule:
            case All():
                return True
            case Index():
                return any(at == (wanted if wanted >= 0 else prompt + wanted) for wanted in rule.index)
            case Slice():
                start = 0 if rule.start is None else rule.start if rule.start >= 0 else max(0, prompt + rule.start)
                stop = len(ids) if rule.stop is None else rule.stop if rule.stop >= 0 else max(0, prompt + rule.stop)
                return start <= at < stop
            case Last():
                return at == prompt - 1
            case Tokens():
                return ids[at] in rule.ids
            case AfterFirst():
                return any(before in rule.ids for before in ids[:at])
            case Prompt():
                return at < prompt
            case Generated():
                return at >= prompt
            case Special():
                return ids[at] in SPECIAL
            case And():
                return all(chooses(each, at) for each in rule.of)
            case Or():
                return any(chooses(each, at) for each in rule.of)
            case Not():
                return not chooses(rule.of, at)
        raise AssertionError(rule)

    return [chooses(rule, at) for at in range(len(ids))]


TEXTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=3)


@settings(deadline=None)
@given(rule=rules(), texts=TEXTS, side=st.sampled_from(["left", "right"]), cut=st.lists(st.integers(1, 7), min_size=3, max_size=3))
def test_a_rule_chooses_what_it_says_wherever_the_padding_is(rule: Any, texts: list[list[int]], side: Any, cut: list[int]) -> None:
    batch = Batch.of(texts, pad=7, side=side)
    prompts = [min(length, len(text)) for length, text in zip(cut, texts, strict=False)]
    calls = Calls(special=SPECIAL, prompt_lengths=prompts)
    calls.note({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
    where = calls.now.chosen(rule)
    assert not bool((where & ~batch.attention_mask.bool()).any())
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        assert where[row][batch.attention_mask[row].bool()].tolist() == chosen_one_by_one(rule, text, prompt)


def _cache(length: int) -> DynamicCache:
    """A cache of a text of that length."""
    cache, nothing = DynamicCache(), torch.zeros(1, 1, length, 1)
    cache.update(nothing, nothing, 0)
    return cache


@settings(deadline=None)
@given(rule=rules(), texts=TEXTS, written=st.lists(st.integers(0, 9), min_size=1, max_size=6), step=st.integers(1, 3))
def test_a_text_that_grows_in_a_cache_is_chosen_from_as_the_whole_text_is(
    rule: Any, texts: list[list[int]], written: list[int], step: int
) -> None:
    batch, calls = Batch.of(texts, side="left"), Calls(special=SPECIAL)
    calls.note({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
    columns, mask = [calls.now.here(calls.now.chosen(rule))], batch.attention_mask
    for start in range(0, len(written), step):
        new = torch.tensor([written[start : start + step]] * len(texts))
        past, mask = mask.shape[1], torch.cat([mask, torch.ones_like(new)], 1)
        calls.note({"input_ids": new, "attention_mask": mask, "past_key_values": _cache(past)})
        columns.append(calls.now.here(calls.now.chosen(rule)))
    where = torch.cat(columns, 1)
    for row, text in enumerate(texts):
        expected = chosen_one_by_one(rule, [*text, *written], len(text))
        assert where[row][mask[row].bool()].tolist() == expected
        assert calls.now.chosen(rule)[row][mask[row].bool()].tolist() == expected


@settings(deadline=None)
@given(rule=rules())
def test_a_rule_survives_json(rule: Any) -> None:
    again = READ.validate_json(READ.dump_json(rule))
    assert again == rule
    assert READ.dump_json(again) == READ.dump_json(rule)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"at": "index", "index": []}, "at least 1 item"),
        ({"at": "index", "index": [10**30]}, "less than 2147483648"),
        ({"at": "index", "index": [1.5]}, "valid integer"),
        ({"at": "index"}, "Field required"),
        ({"at": "slice", "start": 3, "stop": 3}, "the slice 3:3 chooses no token at all; expected stop > start"),
        ({"at": "slice", "start": -2, "stop": -4}, "the slice -2:-4 chooses no token at all"),
        ({"at": "slice", "stop": 0}, "the slice 0:0 chooses no token at all"),
        ({"at": "tokens", "ids": [-1]}, "greater than or equal to 0"),
        ({"at": "tokens", "ids": [2**31]}, "less than 2147483648"),
        ({"at": "tokens", "ids": [1] * 10_001}, "at most 10000 items"),
        ({"at": "not", "of": {"at": "all"}}, r"not\(all\) chooses no token at all"),
        ({"at": "and", "of": []}, "at least 1 item"),
        ({"at": "or", "of": [{"at": "last"}] * 101}, "at most 100 items"),
        ({"at": "last", "index": 3}, "Extra inputs are not permitted"),
        ({}, "Unable to extract tag using discriminator 'at'"),
        (None, "valid dictionary"),
    ],
)
def test_a_wrong_rule_is_refused(values: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        READ.validate_python(values)


def test_the_largest_numbers_are_worked_with() -> None:
    view = TokenView.of(Batch.of([[1, 2, 3]]))
    assert view.chosen(Index(index=(2**31 - 1, -(2**31)))).tolist() == [[False] * 3]
    assert view.chosen(Slice(start=-(2**31), stop=2**31 - 1)).tolist() == [[True] * 3]
    assert view.chosen(Tokens(ids=(2**31 - 1,))).tolist() == [[False] * 3]
