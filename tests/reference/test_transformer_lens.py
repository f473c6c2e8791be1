"""Our numbers against those of TransformerLens, which `make_transformer_lens.py` wrote down.

TransformerLens ran each prompt alone with attention written out (eager). Here the prompts are one padded batch, and attention is the
model's own default.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.hooks.batch import Batch, forward
from engine.hooks.bind import bind
from engine.hooks.capture import captured
from engine.hooks.edit import Edit
from engine.hooks.sites import GLOBAL, HOOK_NAMES, Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel
from tests.plugin_engine import FAMILIES, tiny_model
from tests.reference.slices import HEADS, LAYER, PROMPTS, of_logits, of_site, weights_hash

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("transformer_lens.json").read_text(encoding="utf-8"))
NOT_THERE = {"head_out", "logits"}
"""Sites that the file leaves out: head_out is z through the projection, and the logits are there as `clean`."""


@pytest.fixture
def golden(loaded: LoadedModel) -> dict[str, Any]:
    """The numbers of the family at hand, if they are of these weights."""
    numbers = GOLDEN["families"][loaded.ref.id.split("/")[-1]]  # a reference knows gpt2 by its name on the hub
    if weights_hash(loaded.model) != numbers["weights"]:
        pytest.skip("the numbers are of other weights, as another test says")
    return numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_that_the_numbers_are_of(family: str) -> None:
    made = f"{GOLDEN['made']} with {GOLDEN['versions']}"
    assert weights_hash(tiny_model(family)) == GOLDEN["families"][family]["weights"], (
        f"the random models begin otherwise than on {made}; this says nothing of the engine. Make the numbers anew: {GOLDEN['command']}"
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("head", [None, *HEADS])
def test_logits_without_a_head(loaded: LoadedModel, golden: dict[str, Any], head: tuple[int, int] | None, side: Any) -> None:
    batch = Batch.of(PROMPTS, side=side)
    edits = [] if head is None else [Edit(site=Site(layer=head[0], name="z", head=head[1]), op="zero")]
    with edited(loaded, bind(edits, loaded)):
        logits = forward(loaded.model, batch)
    expected = golden["clean" if head is None else f"without {head[0]}.{head[1]}"]
    for row, mask, numbers in zip(logits, batch.attention_mask, expected, strict=True):
        torch.testing.assert_close(of_logits(row[mask.bool()]), torch.tensor(numbers), atol=5e-6, rtol=0)


def test_activations(loaded: LoadedModel, golden: dict[str, Any]) -> None:
    sites = {name: Site(layer=None if name in GLOBAL else LAYER, name=name) for name in golden if name in HOOK_NAMES}
    with captured(loaded, list(sites.values())) as got:
        forward(loaded.model, Batch.of(PROMPTS))
    for name, site in sites.items():
        x = got[site][0]
        found = of_site(name, x.unflatten(-1, (-1, loaded.anatomy.d_head)) if name == "z" else x)
        assert_close(found, golden[name]["numbers"], name)


def assert_close(found: Tensor, expected: list[list[float | None]], name: str) -> None:
    """Equal to 5e-6, or to one part in a million of large numbers; a score that TransformerLens masks is not compared."""
    numbers = torch.tensor([[float("nan") if number is None else number for number in row] for row in expected])
    seen = ~numbers.isnan()
    assert seen.all() or name == "scores"
    torch.testing.assert_close(found[seen], numbers[seen], atol=5e-6, rtol=1e-6, msg=lambda text: f"{name}: {text}")


def test_the_file_has_every_site_that_transformer_lens_shows() -> None:
    missing = {family: set(HOOK_NAMES) - set(numbers) - NOT_THERE for family, numbers in GOLDEN["families"].items()}
    beside, unrotated = {"resid_mid"}, {"q", "k"}  # no middle in parallel blocks; fused projections are shown before rotation only
    expected = {"gpt_neox_parallel": beside | unrotated, "gpt_neox_serial": unrotated, "phi": beside, "phi3": unrotated}
    assert missing == {family: expected.get(family, set()) for family in FAMILIES}
