"""Generation against transformers' own, and each way of generating against another that must come to the same."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.generation import Generated, Sample, Stop, Written, complete
from engine.hooks.batch import Batch
from engine.hooks.call import Calls
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.edit import Edit, When
from engine.hooks.positions import (
    AfterFirst,
    All,
    And,
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
from engine.hooks.positions import (
    Generated as Behind,
)
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13], [0, 2, 40, 41, 7]]
LOGITS = Site(name="logits")
ON = Stop(eos=False)
SOME = pytest.mark.parametrize("loaded", ["gpt2", "llama", "gemma2"], indirect=True)
"""Learned positions, rotary ones, and a sliding window; for what hardly depends on the family."""
RULES: list[Positions] = [
    Last(),
    Index(index=(0, -1, 8)),
    Behind(),
    Prompt(),
    Tokens(ids=(2, 7, 41)),
    AfterFirst(ids=(9, 40)),
    Special(),
    Slice(start=2, stop=8),
    Slice(start=-2),
    And(of=(Behind(), Not(of=Tokens(ids=(1, 2, 3))))),
    Or(of=(Last(), Behind())),
    All(),
]
"""Every kind of rule, and some within others."""


def _vector(width: int, seed: int = 0) -> list[float]:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed)).tolist()


def _edits(loaded: LoadedModel) -> list[Edit]:
    """An edit at each kind of site, every time at other tokens."""
    d, d_head = loaded.anatomy.d_model, loaded.anatomy.d_head
    middle = Site(layer=1, name="resid_post" if loaded.anatomy.kind == "parallel" else "resid_mid")
    sites = [(Site(layer=1, name="resid_pre"), d), (Site(layer=0, name="resid_post"), d), (middle, d), (Site(layer=2, name="mlp_out"), d)]
    sites += [(Site(layer=1, name="attn_out"), d), (Site(layer=1, name="z", head=1), d_head), (Site(layer=1, name="neurons", unit=3), 1)]
    sites += [
        (Site(layer=1, name="q", head=2), d_head),
        (Site(layer=1, name="k", head=1), d_head),
        (Site(layer=2, name="v", head=0), d_head),
    ]
    sites += [(Site(layer=0, name="k", head=0), d_head), (Site(layer=0, name="head_out", head=3), d), (Site(name="final"), d)]
    adds = [
        Edit(site=site, op="add", value=_vector(width, at) if width > 1 else 3.0, strength=2.0, positions=RULES[at % len(RULES)])
        for at, (site, width) in enumerate(sites)
    ]
    return [*adds, *_between_pairs(), *_conditional(d), Edit(site=LOGITS, op="scale", strength=0.5, positions=Behind())]


def _between_pairs() -> list[Edit]:
    pattern = Site(layer=0, name="pattern", head=2)
    keys: list[Positions] = [All(), Prompt(), Index(index=(0, -1)), AfterFirst(ids=(2, 6))]
    rules = (RULES[2], RULES[7], RULES[10], RULES[1])
    zero = [Edit(site=pattern, op="zero", positions=rule, keys=key) for rule, key in zip(rules, keys, strict=True)]
    return [*zero, Edit(site=Site(layer=1, name="scores"), op="add", value=2.0, positions=Behind(), keys=Last())]


def _conditional(d: int) -> list[Edit]:
    own = When(feature=_vector(d, 30), threshold=0.3)
    lower = When(feature=_vector(d, 31), site=Site(layer=0, name="resid_post"), relation="<")
    table = [_vector(d, at) for at in range(11)]
    return [
        Edit(site=Site(layer=1, name="resid_pre"), op="add", value=_vector(d, 32), when=own, positions=Behind()),
        Edit(site=Site(layer=2, name="resid_pre"), op="norm_add", value=_vector(d, 33), when=lower),
        Edit(site=Site(layer=1, name="resid_post"), op="add", value=table, positions=Slice(start=1)),
    ]


def _apart(one: Written, other: Written) -> float:
    """Largest difference of two texts' logits, up to where they part; they part only where the two best are close."""
    worst, start = 0.0, len(PROMPTS[one.prompt]) - 1
    for at in range(len(one.ids)):
        worst = max(worst, float((one.captures[LOGITS][start + at] - other.captures[LOGITS][start + at]).abs().max()))
        if one.ids[at] != other.ids[at]:
            assert min(one.margins[at], other.margins[at]) < 1e-3
            break
    return worst


def _worst(one: Generated, other: Generated) -> float:
    return max(_apart(a, b) for a, b in zip(one.written, other.written, strict=True))


def test_unedited_it_writes_what_transformers_writes(loaded: LoadedModel) -> None:
    batch = Batch.of(PROMPTS, side="left")
    theirs = loaded.model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = complete(loaded, PROMPTS, max_new_tokens=10, stop=ON)
    assert [list(written.ids) for written in ours.written] == theirs[:, batch.width :].tolist()


def test_with_and_without_a_cache_every_edit_does_the_same(loaded: LoadedModel) -> None:
    variants = [[edit] for edit in _edits(loaded)]
    cached = complete(loaded, PROMPTS, max_new_tokens=4, variants=variants, stop=ON, capture=[LOGITS])
    again = complete(loaded, PROMPTS, max_new_tokens=4, variants=variants, stop=ON, capture=[LOGITS], use_cache=False)
    assert _worst(cached, again) < 1e-4
    plain = complete(loaded, PROMPTS, max_new_tokens=4, stop=ON, capture=[LOGITS])
    moved = [max(_moved(cached.of(prompt, at), plain.of(prompt)) for prompt in range(3)) for at in range(len(variants))]
    assert min(moved) > 1e-3, variants[moved.index(min(moved))]


def _moved(one: Written, plain: Written) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one.captures[LOGITS], plain.captures[LOGITS], strict=True))


def test_a_row_with_its_edit_is_the_same_alone_and_among_others(loaded: LoadedModel) -> None:
    edits = _edits(loaded)[::4]
    together = complete(loaded, PROMPTS, max_new_tokens=4, variants=[[edit] for edit in edits], stop=ON, capture=[LOGITS])
    for variant in range(len(edits)):
        prompt = variant % len(PROMPTS)
        alone = complete(loaded, [PROMPTS[prompt]], max_new_tokens=4, edits=[edits[variant]], stop=ON, capture=[LOGITS])
        logits = zip(together.of(prompt, variant).captures[LOGITS], alone.of(0).captures[LOGITS], strict=True)
        assert together.of(prompt, variant).ids == alone.of(0).ids
        assert max(float((a - b).abs().max()) for a, b in logits) < 2e-5


def test_steering_what_is_written_is_adding_to_those_columns(loaded: LoadedModel) -> None:
    """Against a hook that is told by hand which columns of a whole text it changes."""
    vector = torch.tensor(_vector(loaded.anatomy.d_model))
    site = Site(layer=1, name="resid_post")
    edit = Edit(site=site, op="add", value=vector.tolist(), strength=3.0, positions=Or(of=(Behind(), Index(index=(1,)))))
    written = complete(loaded, PROMPTS, max_new_tokens=6, edits=[edit], stop=ON, capture=[LOGITS]).written
    for prompt, one in zip(PROMPTS, written, strict=True):
        text = [*prompt, *one.ids[:-1]]
        by_hand = torch.zeros(1, len(text), 1)
        by_hand[:, [1, *range(len(prompt), len(text))]] = 1
        with edited(loaded, [Change(site=site, op="add", value=3.0 * by_hand * vector)]), torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        torch.testing.assert_close(one.captures[LOGITS], logits, atol=1e-4, rtol=0)
        assert list(one.ids) == logits[len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("padded", [False, True])
def test_at_neutral_strength_all_is_as_unedited_bit_for_bit(loaded: LoadedModel, padded: bool) -> None:
    prompts = PROMPTS if padded else PROMPTS[:1] * 2
    d = loaded.anatomy.d_model
    site = Site(layer=1, name="resid_post")
    edit = Edit(site=site, op="add", value=_vector(d), strength=0, positions=Behind())
    orthogonal = Edit(site=Site(layer=0, name="mlp_out"), op="orthogonal", value=_vector(d, 1), strength=1)
    plain = complete(loaded, prompts, max_new_tokens=5, variants=[[], []], stop=ON, capture=[LOGITS])
    neutral = complete(loaded, prompts, max_new_tokens=5, variants=[[edit], [orthogonal]], stop=ON, capture=[LOGITS])
    _assert_same(plain, neutral)
    strengths = [[edit.at_strength(0.0)], [edit.at_strength(4.0)]]
    beside = complete(loaded, prompts, max_new_tokens=5, variants=strengths, stop=ON, capture=[LOGITS])
    for prompt in range(len(prompts)):
        assert torch.equal(beside.of(prompt, 0).captures[LOGITS], plain.of(prompt, 0).captures[LOGITS])
        assert beside.of(prompt, 0).ids == plain.of(prompt, 0).ids


def _assert_same(one: Generated, other: Generated) -> None:
    for a, b in zip(one.written, other.written, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.captures[LOGITS], b.captures[LOGITS])


@SOME
def test_strengths_along_the_batch_are_runs_one_by_one(loaded: LoadedModel) -> None:
    d = loaded.anatomy.d_model
    base = [
        Edit(site=Site(layer=1, name="resid_post"), op="add", value=_vector(d), strength=0, positions=Behind()),
        Edit(site=Site(layer=0, name="z", head=1), op="scale", strength=1),
    ]
    variants = [[base[0].at_strength(s), base[1].at_strength(1 - s)] for s in (0.0, 1.0, 3.0)]
    together = complete(loaded, PROMPTS, max_new_tokens=5, variants=[[], *variants], stop=ON, capture=[LOGITS])
    for at, edits in enumerate([[], *variants]):
        alone = complete(loaded, PROMPTS, max_new_tokens=5, edits=edits, stop=ON, capture=[LOGITS])
        some = Generated(written=together.written[at * 3 : at * 3 + 3], n_prompts=3)
        assert _worst(some, alone) < 2e-5


@pytest.mark.parametrize("use_cache", [True, False])
def test_captures_are_those_of_the_whole_text_read_at_once(loaded: LoadedModel, use_cache: bool) -> None:
    edit = Edit(site=Site(layer=0, name="resid_post"), op="add", value=_vector(loaded.anatomy.d_model), positions=Behind())
    sites = [Site(layer=1, name=name) for name in ("resid_post", "z", "neurons", "q", "k", "v", "pattern")]
    sites += [
        Site(layer=2, name="pattern", head=1),
        Site(layer=1, name="k", head=1),
        Site(layer=1, name="mlp_out", unit=3),
        Site(name="embed"),
    ]
    written = complete(loaded, PROMPTS, max_new_tokens=6, edits=[edit], stop=ON, capture=sites, use_cache=use_cache).written
    for prompt, one in zip(PROMPTS, written, strict=True):
        whole = _read_at_once(loaded, prompt, one, edit, sites)
        for site in sites:
            torch.testing.assert_close(
                one.captures[site], whole[site][0], atol=2e-5, rtol=1e-5, msg=lambda text, at=site: f"{at.label}: {text}"
            )


def _read_at_once(loaded: LoadedModel, prompt: Sequence[int], one: Written, edit: Edit, sites: Sequence[Site]) -> dict[Site, Tensor]:
    text = torch.tensor([[*prompt, *one.ids[:-1]]])
    assert edit.value is not None
    change = Change(site=edit.site, op="add", value=torch.tensor(edit.value), positions=edit.positions)
    calls = Calls(prompt_lengths=[len(prompt)])
    with edited(loaded, [change], calls=calls), captured(loaded, sites) as got, torch.no_grad():
        loaded.model(input_ids=text, use_cache=False)
    return got


@SOME
def test_rows_that_ended_do_not_disturb_the_others(loaded: LoadedModel) -> None:
    """Each row ends at a token of its own; the rest is as in a run that goes on to the end."""
    edits = [edit for edit in _edits(loaded) if edit.site.name in ("resid_pre", "k")]
    variants = [[], *([edit] for edit in edits), [edits[0].at_strength(4.0)]]
    on = complete(loaded, PROMPTS, max_new_tokens=7, variants=variants, stop=ON, capture=[LOGITS])
    ends = {on.of(0, 0).ids[1], on.of(1, 2).ids[3], on.of(2, 3).ids[2]}
    stop = Stop(eos=False, ids=tuple(ends))
    for use_cache in (True, False):
        some = complete(loaded, PROMPTS, max_new_tokens=7, variants=variants, stop=stop, capture=[LOGITS], use_cache=use_cache)
        for short, long in zip(some.written, on.written, strict=True):
            wanted = next((at + 1 for at, token in enumerate(long.ids) if token in ends), len(long.ids))
            assert short.ids == long.ids[:wanted]
            assert short.stop == ("stop" if short.ids[-1] in ends else "length")
            last = len(PROMPTS[short.prompt]) - 1 + wanted
            torch.testing.assert_close(short.captures[LOGITS], long.captures[LOGITS][:last], atol=2e-5, rtol=0)


@SOME
def test_samples_with_one_seed_differ_by_the_edit_only(loaded: LoadedModel) -> None:
    sampling = Sample(temperature=1.3, top_k=40, top_p=0.95, seed=4)
    steer = Edit(site=Site(layer=1, name="resid_post"), op="add", value=_vector(loaded.anatomy.d_model), strength=0)
    variants = [[], [steer], [steer.at_strength(5.0)]]
    found = complete(loaded, PROMPTS, max_new_tokens=6, variants=variants, sampling=sampling, stop=ON)
    assert [found.of(at, 0).ids for at in range(3)] == [found.of(at, 1).ids for at in range(3)]
    assert [found.of(at, 0).ids for at in range(3)] != [found.of(at, 2).ids for at in range(3)]
    alone = complete(loaded, PROMPTS[::-1], max_new_tokens=6, edits=[steer.at_strength(5.0)], sampling=sampling, stop=ON)
    assert [written.ids for written in alone.written[::-1]] == [found.of(at, 2).ids for at in range(3)]
