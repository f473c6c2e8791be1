"""Writing from Python: the engine's own texts, whatever edits are in place around it."""

import pytest
import torch

from engine.decoding import Sample, Stop
from engine.errors import SpecError
from engine.generation import complete
from engine.hooks.edit import Edit
from engine.hooks.sites import Site
from engine.lab.model import Model
from engine.models.loading import LoadedModel

PROMPTS = ["the cat", "two and two are", "a bird"]
EDIT = Edit.model_validate({"site": {"layer": 1, "name": "mlp_out"}, "op": "scale", "strength": -2})
AT_LAST = Edit.model_validate({"site": {"layer": 1, "name": "resid_post"}, "op": "zero", "positions": {"at": "last"}})


@pytest.fixture
def model(llama: LoadedModel) -> Model:
    return Model(llama)


def test_it_is_what_the_engine_writes(model: Model) -> None:
    ids = [model.to_tokens(prompt) for prompt in PROMPTS]
    made = model.generate(PROMPTS, max_new_tokens=6, variants=[(), EDIT], capture="blocks.1.hook_mlp_out")
    straight = complete(model.loaded, ids, max_new_tokens=6, variants=[(), (EDIT,)])
    assert [one.ids for one in made.written] == [one.ids for one in straight.written]
    assert made.of(2, 1).ids == straight.of(2, 1).ids
    assert made.texts[0] == model.tokenizer.decode(made.of(0).ids)
    assert set(made.of(0).captures) == {Site(layer=1, name="mlp_out")}


@pytest.mark.parametrize("edit", [EDIT, AT_LAST], ids=["everywhere", "last token"])
def test_edits_in_place_and_edits_of_its_own_agree(model: Model, edit: Edit) -> None:
    """Texts that end early take their rows out of a batch; an edit around them must not notice."""
    stop = Stop(ids=(model.generate(PROMPTS, edits=edit, max_new_tokens=8).of(1).ids[2],))
    own = model.generate(PROMPTS, edits=edit, max_new_tokens=8, stop=stop)
    with model.edit(edit):
        around = model.generate(PROMPTS, max_new_tokens=8, stop=stop)
    assert [one.ids for one in around.written] == [one.ids for one in own.written]
    assert [(one.prompt, one.variant) for one in around.written] == [(0, 0), (1, 0), (2, 0)]
    assert len({len(one.ids) for one in own.written}) > 1


def test_a_function_of_ones_own_reaches_what_is_written(model: Model) -> None:
    with model.edit(lambda x: -2 * x, at="blocks.1.hook_mlp_out"):
        around = model.generate(PROMPTS, max_new_tokens=6, variants=[(), AT_LAST])
    own = model.generate(PROMPTS, max_new_tokens=6, edits=EDIT, variants=[(), AT_LAST])
    assert [one.ids for one in around.written] == [one.ids for one in own.written]


def test_variants_share_their_draws(model: Model) -> None:
    made = model.generate(PROMPTS[:1], max_new_tokens=8, variants=[(), ()], sampling=Sample(seed=4))
    assert made.of(0, 0).ids == made.of(0, 1).ids
    assert made.of(0).ids != model.generate(PROMPTS[:1], max_new_tokens=8, sampling=Sample(seed=5)).of(0).ids


def test_a_reference_and_kept_tensors_are_known(model: Model) -> None:
    ref = model.keep(torch.ones(32))
    edits = [{"site": "blocks.0.hook_mlp_out", "op": "mean"}, {"site": "blocks.1.hook_resid_post", "op": "add", "value": ref}]
    inside = model.generate(PROMPTS, max_new_tokens=4, edits=edits, reference=PROMPTS)
    with model.edit(edits, reference=PROMPTS):
        around = model.generate(PROMPTS, max_new_tokens=4)
    assert [one.ids for one in inside.written] == [one.ids for one in around.written]


def test_it_shows_itself_without_trust(model: Model) -> None:
    made = model.generate(["<b>&", [5, 9]], max_new_tokens=2)
    assert made.prompts == ("<b>&", model.tokenizer.decode([5, 9]))
    assert "<b>" not in made._repr_html_()
    assert "'<b>&'" in repr(made)
    frame = made.to_pandas()
    assert list(frame["prompt"]) == list(made.prompts)
    assert frame["logprob"].tolist() == pytest.approx([sum(one.logprobs) for one in made.written])


def test_too_many_tokens_are_refused(model: Model) -> None:
    with pytest.raises(SpecError, match="positions"):
        model.generate("the cat", max_new_tokens=100)
