"""A function as an edit: held to the shape of what it was given, and never in the way of anything else."""

import threading

import pytest
import torch
from torch import Tensor, nn

from engine.errors import Conflict, SpecError
from engine.hooks.sites import Site
from engine.lab.model import Model
from engine.lab.source import source_of
from engine.models.loading import LoadedModel
from tests.plugin_engine import hook_count

TEXT = "a bird is an animal"
POST = "blocks.1.hook_resid_post"


@pytest.fixture
def model(llama: LoadedModel) -> Model:
    return Model(llama)


@pytest.mark.parametrize("site", [Site(layer=1, name="z", head=2), Site(layer=0, name="neurons"), Site(layer=2, name="q", head=1)])
def test_a_function_does_what_the_same_edit_as_data_does(loaded: LoadedModel, site: Site) -> None:
    model = Model(loaded)
    with model.edit({"site": site, "op": "scale", "strength": -0.5}):
        as_data = model.logits(TEXT)
    with model.edit(lambda x: -0.5 * x, at=site):
        as_function = model.logits(TEXT)
    assert torch.allclose(as_data, as_function, atol=1e-5)
    assert not torch.allclose(as_data, model.logits(TEXT), atol=1e-3)


def test_writing_into_what_it_is_given_changes_nothing_else(model: Model) -> None:
    def wipe(x: Tensor) -> Tensor:
        return x.zero_()

    with model.capture(["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]) as got, model.edit(wipe, at="blocks.1.hook_resid_pre"):
        model.logits(TEXT)
    assert got["blocks.0.hook_resid_post"].any()
    assert not got["blocks.1.hook_resid_pre"].any()


def test_a_module_with_weights_of_its_own_is_trained_through_the_model(model: Model) -> None:
    class Steer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Parameter(torch.zeros(32))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.vector

    steer = Steer()
    with model.edit(steer, at=POST):
        model.logits(TEXT, grad=True)[0, -1, 5].backward()
    assert steer.vector.grad is not None
    assert steer.vector.grad.any()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.tolist(), "gave back list"),
        (lambda x: x[:, -1:], r"gave back shape \(1, 1, 32\); expected"),
        (lambda x: x.double(), "gave back dtype torch.float64; expected torch.float32"),
        (lambda x: x.to("meta"), "gave back device meta; expected cpu"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(model: Model, function, said: str) -> None:
    before, plain = hook_count(model.loaded.model), model.logits(TEXT)
    with pytest.raises(SpecError, match=said), model.edit(function, at=POST):
        model.logits(TEXT)
    assert hook_count(model.loaded.model) == before
    assert torch.equal(model.logits(TEXT), plain)


def test_its_own_error_is_not_wrapped(model: Model) -> None:
    def wrong(_: Tensor) -> Tensor:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"), model.edit(wrong, at=POST):
        model.logits(TEXT)


def test_a_spec_is_not_run_on_an_edited_model(model: Model) -> None:
    """A run says by its spec what was done; an edit around it would make that a lie."""
    for edits, at in ((lambda x: x, POST), ({"site": POST, "op": "zero"}, None)):
        with pytest.raises(Conflict, match="an edit is in place on 'llama'"), model.edit(edits, at=at):
            model.run({"kind": "ablation", "dataset": {"name": "micro_stories"}})


def test_it_works_in_its_own_thread_only(model: Model) -> None:
    plain, seen, inside = model.logits(TEXT), [], threading.Event()

    def other() -> None:
        inside.wait(10)
        seen.append(model.logits(TEXT))

    thread = threading.Thread(target=other)
    thread.start()
    with model.edit(torch.zeros_like, at=POST):
        inside.set()
        assert not torch.equal(model.logits(TEXT), plain)
    thread.join(10)
    assert torch.equal(seen[0], plain)


def test_source_texts_of_all_sorts_of_functions() -> None:
    def mine(x: Tensor) -> Tensor:
        return x

    kept = source_of(mine, "edit", at=POST)
    assert (kept.name, kept.role, kept.at, kept.origin) == ("mine", "edit", POST, "file")
    assert "def mine(x: Tensor)" in kept.text
    assert "class Linear" in source_of(nn.Linear(2, 2), "edit").text
    built_in = source_of(torch.relu, "edit")
    assert (built_in.origin, built_in.text) == ("unknown", "")
    typed: dict = {}
    exec("def typed(x): return x", typed)
    assert source_of(typed["typed"], "edit").model_dump(include={"name", "origin", "text"}) == {
        "name": "typed",
        "origin": "unknown",
        "text": "",
    }
