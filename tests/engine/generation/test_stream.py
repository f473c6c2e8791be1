"""How generation begins, goes on, and ends: refusals, stops, cancelling, other threads, and nothing left on the model."""

import threading
from collections.abc import Iterable

import pytest
import torch

from engine.errors import ModelError, SpecError
from engine.generation import Sample, Step, Stop, collected, complete, generate
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind, hash_of
from engine.hooks.capture import captured
from engine.hooks.edit import Edit, TensorRef
from engine.hooks.positions import Generated, Index
from engine.hooks.reference import PromptReference
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, hook_count, tiny_model

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13], [0, 2, 40, 41, 7]]
ON = Stop(eos=False)
STEER = Edit(
    site=Site(layer=1, name="resid_post"),
    op="add",
    value=torch.randn(32, generator=torch.Generator().manual_seed(1)),  # type: ignore[arg-type]
    strength=3.0,
    positions=Generated(),
)


def _ids(steps: Iterable[Step]) -> list[list[int]]:
    return [list(written.ids) for written in collected(steps, PROMPTS).written]


def test_log_probabilities_and_margins_are_those_of_the_logits(llama: LoadedModel) -> None:
    logits = Site(name="logits")
    for sampling in (Sample(temperature=0.5, top_k=3, seed=2), Sample(temperature=2.0)):
        found = complete(llama, PROMPTS, max_new_tokens=5, edits=[STEER], sampling=sampling, stop=ON, capture=[logits])
        for prompt, written in zip(PROMPTS, found.written, strict=True):
            logprobs = written.captures[logits][len(prompt) - 1 :].double().log_softmax(-1)
            best = logprobs.sort(descending=True).values
            assert written.logprobs == pytest.approx([float(row[id]) for row, id in zip(logprobs, written.ids, strict=True)], abs=1e-5)
            assert written.margins == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-5)


def test_texts_end_for_the_reason_that_comes_first(llama: LoadedModel) -> None:
    whole = complete(llama, PROMPTS, max_new_tokens=6, stop=ON)
    assert {written.stop for written in whole.written} == {"length"}
    first = whole.of(0)
    by_id = complete(llama, PROMPTS, max_new_tokens=6, stop=Stop(eos=False, ids=(first.ids[2],))).of(0)
    assert (by_id.ids, by_id.stop) == (first.ids[:3], "stop")
    text = llama.tokenizer.decode(list(whole.of(2).ids[1:3]))
    by_text = complete(llama, PROMPTS, max_new_tokens=6, stop=Stop(eos=False, texts=(text,))).of(2)
    assert by_text.stop == "stop"
    assert text in by_text.text
    assert whole.of(2).ids[: len(by_text.ids)] == by_text.ids


@pytest.mark.parametrize("as_list", [True, False])
def test_the_models_own_end_of_text_counts(as_list: bool) -> None:
    loaded = as_loaded(tiny_model("llama"))
    free = complete(loaded, PROMPTS, max_new_tokens=6, stop=ON).of(1)
    settings = loaded.model.generation_config
    assert settings is not None
    settings.eos_token_id = [333, free.ids[3]] if as_list else free.ids[3]
    settings.repetition_penalty, settings.forced_bos_token_id = 9.0, 7  # not ours to apply
    ended = complete(loaded, PROMPTS, max_new_tokens=6).of(1)
    assert (ended.ids, ended.stop) == (free.ids[: free.ids.index(free.ids[3]) + 1], "eos")
    settings.eos_token_id = None
    assert complete(loaded, [[5, 9]], max_new_tokens=1).of(0).stop in ("eos", "length")  # the tokenizer's then


def test_a_text_that_ended_gets_no_more_tokens(llama: LoadedModel) -> None:
    end = complete(llama, PROMPTS, max_new_tokens=6, stop=ON).of(1).ids[1]
    steps = list(generate(llama, PROMPTS, max_new_tokens=6, stop=Stop(eos=False, ids=(end,)), capture=[STEER.site]))
    for step in steps:
        assert step.captures[STEER.site].shape[0] == len(step.tokens)
    ended = {(token.prompt, step.number) for step in steps for token in step.tokens if token.stop}
    assert all(token.prompt != prompt for prompt, at in ended for step in steps[at + 1 :] for token in step.tokens)


def test_cancelling_and_closing_stop_within_one_token(llama: LoadedModel) -> None:
    asked = list[int]()

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 3

    found = complete(llama, PROMPTS, max_new_tokens=20, edits=[STEER], stop=ON, cancelled=cancelled)
    assert [(len(written.ids), written.stop) for written in found.written] == [(3, "cancelled")] * 3
    assert complete(llama, PROMPTS, max_new_tokens=2, cancelled=lambda: True).of(0).ids == ()
    steps = generate(llama, PROMPTS, max_new_tokens=20, edits=[STEER])
    next(steps)
    steps.close()
    assert hook_count(llama.model) == 0
    assert llama.wiring.wires == {}


def test_between_steps_the_model_is_free_and_as_it_was(llama: LoadedModel) -> None:
    batch, inside = Batch.of(PROMPTS), Edit(site=Site(layer=0, name="pattern", head=1), op="zero")
    plain, alone = forward(llama.model, batch), _ids(generate(llama, PROMPTS, max_new_tokens=6, edits=[STEER, inside], stop=ON))
    seen = list[bool]()

    def other() -> None:
        with edited(llama, bind([Edit(site=STEER.site, op="zero")], llama)):
            zero = forward(llama.model, batch)
        seen.append(torch.equal(forward(llama.model, batch), plain) and not torch.equal(zero, plain))

    steps = list[Step]()
    for step in generate(llama, PROMPTS, max_new_tokens=6, edits=[STEER, inside], stop=ON):
        steps.append(step)
        assert hook_count(llama.model) == 0
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert _ids(steps) == alone
    assert seen == [True] * 6


def test_two_texts_written_by_two_threads_do_not_mix(llama: LoadedModel) -> None:
    strengths = (0.0, 2.0, -2.0)
    edits = {strength: [STEER.at_strength(strength)] for strength in strengths}
    alone = {at: _ids(generate(llama, PROMPTS, max_new_tokens=8, edits=edits[at], stop=ON)) for at in strengths}
    found = dict[float, list[list[int]]]()

    def work(strength: float) -> None:
        found[strength] = _ids(generate(llama, PROMPTS, max_new_tokens=8, edits=edits[strength], stop=ON))

    threads = [threading.Thread(target=work, args=(strength,)) for strength in strengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == alone


def test_after_an_error_nothing_stays(llama: LoadedModel) -> None:
    table = torch.randn(5, 3, 32)
    misfit = Edit(site=STEER.site, op="add", value=TensorRef(sha256=hash_of(table), shape=(5, 3, 32)))
    with pytest.raises(SpecError, match="5 rows does not fit a batch of 3"):
        complete(llama, PROMPTS, max_new_tokens=3, edits=[STEER, misfit], tensors={hash_of(table): table})
    loud = Edit(site=Site(name="logits"), op="scale", strength=3e38)
    with pytest.raises(ModelError, match="under variant 0 are no numbers after 0 new tokens"):
        complete(llama, PROMPTS, max_new_tokens=3, edits=[loud, loud])
    with pytest.raises(ModelError, match="no numbers"):
        complete(llama, PROMPTS, max_new_tokens=3, edits=[loud, loud], sampling=Sample(top_k=5, top_p=0.5))
    assert hook_count(llama.model) == 0
    assert llama.wiring.wires == {}


def test_edits_and_captures_around_it_hold_for_every_row(llama: LoadedModel) -> None:
    """Somebody else's watch sees all rows until the end, so none is dropped from the batch under it."""
    end = complete(llama, PROMPTS, max_new_tokens=8, edits=[STEER], stop=ON).of(1).ids[1]
    stop = Stop(eos=False, ids=(end,))
    within = _ids(generate(llama, PROMPTS, max_new_tokens=8, edits=[STEER], stop=stop))
    assert len({len(ids) for ids in within}) > 1
    with edited(llama, bind([STEER], llama)), captured(llama, [STEER.site]) as got:
        assert _ids(generate(llama, PROMPTS, max_new_tokens=8, stop=stop)) == within
    assert got[STEER.site].shape == (3, 1, 32)


def test_stand_ins_come_from_the_reference(llama: LoadedModel) -> None:
    site = Site(layer=1, name="mlp_out")
    reference = PromptReference.measured(llama, [[3, 4, 5, 6, 7, 8], [9, 9, 9]], [site])
    edits = [Edit(site=site, op="mean", positions=Generated()), Edit(site=site, op="resample", seed=1, positions=Index(index=(0, 2)))]
    for edit in edits:
        found = complete(llama, PROMPTS, max_new_tokens=3, edits=[edit], stop=ON, reference=reference, capture=[site])
        one = found.of(1).captures[site]
        if edit.op == "mean":
            torch.testing.assert_close(one[3:], reference.mean(site).expand(2, -1))
        else:
            torch.testing.assert_close(one[[0, 2]], reference.drawn(site, 1)[[0, 2]])


@pytest.mark.parametrize(
    ("prompts", "new", "said"),
    [
        ([], 1, "no prompts"),
        ([[1], []], 1, "prompt 1 has no tokens"),
        ([[1, 4000]], 1, "token id 4000 in prompt 0 does not exist: 'llama' has ids 0 to"),
        ([[-1]], 1, "token id -1"),
        ([[1]], 0, "0 new tokens were asked for; expected at least 1"),
        ([[1] * 60], 6, "need 65 positions, but 'llama' has 64. Ask for at most 5 new tokens"),
        ([[1] * 70], 1, "Shorten the prompt"),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_begins(llama: LoadedModel, prompts: list[list[int]], new: int, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        generate(llama, prompts, max_new_tokens=new)


def test_as_many_tokens_as_there_are_positions_can_be_written(llama: LoadedModel) -> None:
    assert len(complete(llama, [[1] * 60], max_new_tokens=5, stop=ON).of(0).ids) == 5


def test_no_variants_and_places_that_are_not_there_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(SpecError, match="no variants"):
        generate(llama, PROMPTS, max_new_tokens=1, variants=[])
    with pytest.raises(SpecError, match="layer 9 does not exist"):
        generate(llama, PROMPTS, max_new_tokens=1, capture=[Site(layer=9, name="z")])
    with pytest.raises(SpecError, match="layer 9 does not exist"):
        generate(llama, PROMPTS, max_new_tokens=1, edits=[Edit(site=Site(layer=9, name="z"), op="zero")])
