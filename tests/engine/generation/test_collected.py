"""Whole texts out of steps."""

import torch

from engine.generation import Sample, Stop, collected, complete, generate
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel
from tests.plugin_engine import as_loaded, tiny_model

PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 4], [6, 1, 13]]
ON = Stop(eos=False)


def test_collected_steps_are_the_whole_texts(llama: LoadedModel) -> None:
    steps = list(generate(llama, PROMPTS, max_new_tokens=4, variants=[[], []], stop=ON))
    found, whole = collected(steps, PROMPTS, n_variants=2), complete(llama, PROMPTS, max_new_tokens=4, variants=[[], []], stop=ON)
    assert found == whole
    assert [(written.prompt, written.variant) for written in found.written] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert found.of(1, 1) is found.written[3]
    for written in found.written:
        assert written.text == llama.tokenizer.decode(list(written.ids), skip_special_tokens=True)


def test_keys_that_a_window_forgot_are_filled_in() -> None:
    """A layer that sees two tokens back: its pattern as a square, with a cache that keeps only as much."""
    loaded = as_loaded(tiny_model("mistral", sliding_window=3))
    pattern, scores = Site(layer=1, name="pattern"), Site(layer=1, name="scores", head=2)
    cached, again = (
        complete(loaded, PROMPTS, max_new_tokens=5, stop=ON, capture=[pattern, scores], use_cache=use_cache) for use_cache in (True, False)
    )
    for one, other in zip(cached.written, again.written, strict=True):
        n = len(PROMPTS[one.prompt]) + 4
        assert one.captures[pattern].shape == (4, n, n)
        assert one.captures[scores].shape == (n, n)
        torch.testing.assert_close(one.captures[pattern], other.captures[pattern], atol=1e-5, rtol=0)
        torch.testing.assert_close(one.captures[pattern].sum(-1), torch.ones(4, n), atol=1e-5, rtol=0)
        seen = torch.ones(n, n).tril().triu(-2).bool()
        assert float(one.captures[pattern][:, ~seen].abs().max()) == 0
        torch.testing.assert_close(one.captures[scores][seen], other.captures[scores][seen], atol=1e-4, rtol=0)
        assert bool((one.captures[scores][~seen] < -1e37).all())


def test_the_same_prompt_twice_gets_two_samples(llama: LoadedModel) -> None:
    found = complete(llama, [[5, 9, 2]] * 3, max_new_tokens=6, sampling=Sample(temperature=2.0), stop=ON)
    assert len({written.ids for written in found.written}) == 3
