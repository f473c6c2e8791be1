"""The model in one's hands, against the plain model and against the engine's own doors."""

import threading
from pathlib import Path

import pytest
import torch

from engine.errors import ModelError, SpecError, UnknownModel
from engine.hooks.edit import Edit
from engine.hooks.sites import Site
from engine.lab.model import Model, load_model
from engine.models.loading import LoadedModel
from engine.spec import ModelRef
from tests.plugin_engine import hook_count

TEXT = "the cat sat on the mat"
ZEROED = {"site": "blocks.1.hook_attn_out", "op": "zero"}
POST = "blocks.1.hook_resid_post"


@pytest.fixture
def model(llama: LoadedModel) -> Model:
    return Model(llama)


@pytest.fixture(autouse=True)
def nothing_left(llama: LoadedModel):
    before = hook_count(llama.model)
    yield
    assert hook_count(llama.model) == before
    assert not llama.wiring.wires


def test_tokens_and_their_texts_belong_together(model: Model) -> None:
    ids = model.to_tokens(TEXT)
    assert ids == model.tokenizer(TEXT)["input_ids"]
    assert "".join(model.to_str_tokens(TEXT)) == TEXT
    assert model.to_str_tokens(ids) == model.to_str_tokens(TEXT)


def test_logits_are_the_models_own_bit_for_bit(model: Model) -> None:
    ids = torch.tensor([model.to_tokens(TEXT)])
    plain = model.loaded.model(input_ids=ids, use_cache=False).logits
    for prompts in (TEXT, [TEXT], ids, ids[0], ids.tolist(), ids[0].tolist()):
        assert torch.equal(model.logits(prompts), plain)


def test_shorter_prompts_are_padded_on_the_right(model: Model) -> None:
    both, short = model.logits([TEXT, "the cat"]), model.logits("the cat")
    assert torch.allclose(both[1, : short.shape[1]], short[0], atol=1e-5)


def test_edits_are_data_whatever_their_form(model: Model) -> None:
    plain, made = model.logits(TEXT), []
    edit = Edit.model_validate(ZEROED)
    for edits in (edit, ZEROED, [edit], [ZEROED], edit.model_dump(mode="json")):
        with model.edit(edits):
            made.append(model.logits(TEXT))
    assert not torch.allclose(plain, made[0], atol=1e-3)
    assert all(torch.equal(made[0], other) for other in made)
    assert torch.equal(model.logits(TEXT), plain)


def test_edit_and_capture_nest_in_any_order(model: Model) -> None:
    with model.edit(ZEROED), model.capture(["blocks.1.hook_attn_out", POST]) as inside:
        model.logits(TEXT)
    with model.capture(["blocks.1.hook_attn_out", POST]) as outside, model.edit(ZEROED):
        model.logits(TEXT)
    for named in ("blocks.1.hook_attn_out", POST):
        assert torch.equal(inside[named], outside[named])
    assert not inside["blocks.1.hook_attn_out"].any()


def test_what_was_captured_is_found_by_site_or_name(model: Model) -> None:
    head = Site(layer=1, name="z", head=2)
    with model.capture([POST, head, "blocks.1.attn.hook_z"]) as got:
        model.logits(TEXT)
    assert torch.equal(got[POST], got[Site(layer=1, name="resid_post")])
    assert torch.equal(got[head], got["blocks.1.attn.hook_z"][..., 16:24])
    assert set(got) == {Site(layer=1, name="z"), head, Site(layer=1, name="resid_post")}
    assert "blocks.1.hook_resid_post" in repr(got)
    with pytest.raises(KeyError, match="nothing was captured at 'L0 mlp_out'"):
        got["blocks.0.hook_mlp_out"]
    assert got.get("blocks.0.hook_mlp_out") is None


def test_a_gradient_agrees_with_a_small_step(model: Model) -> None:
    """Central difference of a logit along a random direction at one token; tolerance 1 % of it."""
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    with model.capture(POST, grad=True) as got:
        model.logits(TEXT, grad=True)[0, -1, 7].backward()
    slope = (got.grad(POST)[0, 2] @ direction).item()

    def stepped(size: float) -> float:
        def step(x: torch.Tensor) -> torch.Tensor:
            x[0, 2] += size * direction
            return x

        with model.edit(step, at=POST):
            return model.logits(TEXT)[0, -1, 7].item()

    measured = (stepped(0.01) - stepped(-0.01)) / 0.02
    assert slope == pytest.approx(measured, rel=0.01, abs=1e-3)


def test_gradients_without_a_beginning_are_explained(model: Model) -> None:
    with pytest.raises(ModelError, match="Capture with grad=True"):
        model.logits(TEXT, grad=True)


def test_mean_and_resample_stand_in(model: Model) -> None:
    site = Site(layer=1, name="mlp_out")
    edit = {"site": "blocks.1.hook_mlp_out", "op": "mean"}
    with model.capture(site) as got:
        model.logits("two and two are four")
    with model.edit(edit, reference="two and two are four"), model.capture(site) as stood:
        model.logits(TEXT)
    assert torch.allclose(stood[site][0], got[site][0].mean(0).expand_as(stood[site][0]), atol=1e-5)
    with pytest.raises(SpecError, match="no prompts were given"), model.edit(edit):
        pass


def test_a_large_value_is_kept_by_name(model: Model) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    ref = model.keep(vector)
    with model.edit({"site": POST, "op": "add", "value": vector}):
        plain = model.logits(TEXT)
    vector.zero_()  # what was kept is a copy
    with model.edit({"site": POST, "op": "add", "value": ref.model_dump(mode="json")}):
        assert torch.equal(model.logits(TEXT), plain)
    with pytest.raises(SpecError, match="is not here"), Model(model.loaded).edit({"site": POST, "op": "add", "value": ref}):
        pass


def test_an_exception_inside_leaves_nothing(model: Model) -> None:
    plain = model.logits(TEXT)
    with pytest.raises(ZeroDivisionError), model.edit(ZEROED), model.capture(POST), model.edit(lambda x: x * (1 // 0), at=POST):
        model.logits(TEXT)
    assert torch.equal(model.logits(TEXT), plain)


def test_two_threads_do_not_mix(model: Model) -> None:
    plain, seen, inside, done = model.logits(TEXT), [], threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        seen.append(model.logits(TEXT))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with model.edit(ZEROED):
        inside.set()
        assert not done.wait(0.2)
    thread.join(10)
    assert torch.equal(seen[0], plain)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"site": "blocks.9.hook_attn_out", "op": "zero"}, "layer 9 does not exist"),
        ({"site": "blocks.1.hook_nothing", "op": "zero"}, "is not a site"),
        ({"site": "blocks.1.hook_attn_out", "op": "blow up"}, "an edit is wrong"),
    ],
)
def test_wrong_edits_are_refused(model: Model, edits: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said), model.edit(edits):
        pass


def test_wrong_places_are_refused(model: Model) -> None:
    with pytest.raises(SpecError, match="is not a site"), model.capture("resid_post"):
        pass
    with pytest.raises(SpecError, match="'at' is for a function"), model.edit(ZEROED, at=POST):
        pass
    with pytest.raises(SpecError, match="Say at="), model.edit(torch.relu):
        pass


@pytest.mark.parametrize(
    ("prompts", "said"),
    [([], "no prompts"), ([[]], "no tokens"), ([10_000], "does not exist"), ([1] * 65, "64 positions"), ([[1.5]], "list of token ids")],
)
def test_wrong_prompts_are_refused(model: Model, prompts: list, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        model.logits(prompts)


def test_the_sites_say_why_one_is_missing(phi: LoadedModel, llama: LoadedModel) -> None:
    rows = {row.name: row for row in Model(phi).sites()}
    assert not rows["resid_mid"].there
    assert "side by side" in rows["resid_mid"].about
    assert rows["v"].about == "[batch, pos, 4 heads, 8]"
    table = Model(llama).sites()
    assert all(row.there for row in table)
    assert {row.name: row for row in table}["v"].about == "[batch, pos, 2 heads, 8]"
    assert list(table.to_pandas()["site"]) == [row.name for row in table]
    assert "resid_mid" in table._repr_html_()
    assert "resid_mid" in repr(table)


def test_the_shapes_in_the_table_are_the_shapes_there_are(llama: LoadedModel) -> None:
    model = Model(llama)
    sites = [Site(layer=None if row.written.find("<layer>") < 0 else 0, name=row.name) for row in model.sites()]
    with model.capture(sites) as got:
        model.logits(TEXT)
    for site, row in zip(sites, model.sites(), strict=True):
        numbers = [int(word) for word in row.about.strip("[]").replace(",", "").split() if word.isdigit()]
        assert [size for size in got[site].shape[1:] if size in numbers][: len(numbers)] == numbers, site


def test_a_folder_is_loaded_and_describes_itself(tiny_folder: Path) -> None:
    model = load_model(str(tiny_folder), device="cpu", dtype=torch.bfloat16)
    assert repr(model).endswith("3 layers, 4 heads, d_model 32, bfloat16 on cpu>")
    assert load_model(ModelRef(id=str(tiny_folder), dtype="bfloat16"), device="cpu").loaded is model.loaded
    assert (model.n_layers, model.n_heads, model.d_model) == (3, 4, 32)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="no-such-model"):
        load_model("no-such-model", data_dir=tmp_path)
    with pytest.raises(SpecError, match="dtype"):
        load_model("philab-micro", dtype="float8")
