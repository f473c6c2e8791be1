"""Reference prompts against the same numbers taken by hand, prompt by prompt."""

import pytest
import torch

from engine.errors import SpecError
from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.reference import PromptReference, draw, sites_of
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel

PROMPTS = [[5, 9, 2, 7], [6, 1], [2, 2, 40, 41, 7, 9], *([[3, number, 8] for number in range(10, 18)])]
MINE = [4, 30, 31, 5, 6, 7, 8, 9]
SITES = [Site(layer=1, name="z", head=2), Site(layer=0, name="mlp_out"), Site(layer=2, name="v", head=1), Site(name="embed")]


def alone(loaded: LoadedModel, prompt: list[int], site: Site) -> torch.Tensor:
    with captured(loaded, [site]) as got:
        forward(loaded.model, Batch.of([prompt]))
    return got[site][0]


def test_the_mean_is_over_all_tokens_of_all_prompts(loaded: LoadedModel) -> None:
    reference = PromptReference.measured(loaded, PROMPTS, SITES)
    for site in SITES:
        by_hand = torch.cat([alone(loaded, prompt, site) for prompt in PROMPTS]).mean(0)
        assert torch.allclose(reference.mean(site), by_hand, atol=1e-5)


def test_a_seed_draws_one_prompt_the_same_at_every_site(llama: LoadedModel) -> None:
    reference = PromptReference.measured(llama, PROMPTS, SITES)
    for seed in range(5):
        for site in SITES:
            assert torch.allclose(reference.drawn(site, seed), alone(llama, PROMPTS[draw(seed, len(PROMPTS))], site), atol=1e-5)
    assert len({draw(seed, len(PROMPTS)) for seed in range(50)}) == len(PROMPTS)


@pytest.mark.parametrize("op", ["mean", "resample"])
def test_bound_to_an_edit_it_stands_in_token_by_token(llama: LoadedModel, op: str) -> None:
    site, seed = Site(layer=1, name="attn_out"), 3
    edit = Edit.model_validate({"site": site, "op": op, **({"seed": seed} if op == "resample" else {})})
    reference = PromptReference.measured(llama, PROMPTS, sites_of([edit]))
    with edited(llama, bind([edit], llama, reference=reference)), captured(llama, [site]) as got:
        forward(llama.model, Batch.of([MINE, MINE[:2]]))
    drawn = alone(llama, PROMPTS[draw(seed, len(PROMPTS))], site)
    repeated = drawn[torch.arange(len(MINE)).clamp(max=len(drawn) - 1)]
    expected = reference.mean(site).expand(len(MINE), -1) if op == "mean" else repeated
    assert torch.allclose(got[site][0], expected, atol=1e-5)
    assert torch.allclose(got[site][1, :2], expected[:2], atol=1e-5)


def test_edits_in_place_are_seen_by_the_reference(llama: LoadedModel) -> None:
    site = Site(layer=2, name="resid_post")
    plain = PromptReference.measured(llama, PROMPTS, [site]).mean(site)
    with edited(llama, bind([Edit.model_validate({"site": {"layer": 0, "name": "mlp_out"}, "op": "zero"})], llama)):
        changed = PromptReference.measured(llama, PROMPTS, [site]).mean(site)
    assert not torch.allclose(plain, changed, atol=1e-3)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site(layer=0, name="pattern"), "pairs of positions"),
        (Site(layer=0, name="q"), "one vector per head"),
        (Site(layer=0, name="head_out"), "one edit for each head"),
    ],
)
def test_what_has_no_one_vector_per_token_is_refused(llama: LoadedModel, site: Site, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        PromptReference.measured(llama, PROMPTS, [site])


def test_no_prompts_and_a_site_that_was_not_measured(llama: LoadedModel) -> None:
    with pytest.raises(SpecError, match="no reference prompts"):
        PromptReference.measured(llama, [], SITES)
    with pytest.raises(SpecError, match="not measured at"):
        PromptReference.measured(llama, PROMPTS, SITES).mean(Site(layer=1, name="mlp_out"))
