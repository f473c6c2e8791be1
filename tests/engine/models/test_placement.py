"""Models on several places at once, on the disk too, against the same models in one piece."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import ModelError, ModelTooLarge, SpecError
from engine.hooks.batch import Batch
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.dense_weight import dense_weight
from engine.hooks.discovery import find_anatomy
from engine.hooks.sites import Site
from engine.hooks.sweep import naive_sweep, sweep
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel, forget_models, load_model
from engine.models.memory import GIB
from engine.models.placement import on_one_device, wish
from engine.spec import ModelRef
from tests.plugin_engine import FAMILIES, as_loaded, hook_count, save_model, tiny_model

IDS = torch.tensor([[5, 9, 2, 7, 11, 3], [6, 1, 13, 30, 2, 40]])
REF = ModelRef(id="m")


@pytest.fixture(autouse=True)
def _forget() -> None:
    forget_models()


def _map(family: str, disk: tuple[int, ...], rest: str = "cpu") -> dict[str, str]:
    """A device map with some layers on the disk, and all the rest in main memory."""
    model = tiny_model(family)
    names = {module: name for name, module in model.named_modules()}
    layers = [names[block.layer] for block in find_anatomy(model).blocks]
    stack = layers[0].rpartition(".")[0]
    trunk = stack.rpartition(".")[0]
    beside = [f"{trunk}.{name}" for name, _ in model.get_submodule(trunk).named_children() if f"{trunk}.{name}" != stack]
    return {name: rest for name in [*beside, "lm_head"]} | {name: "disk" if at in disk else "cpu" for at, name in enumerate(layers)}


def _places(loaded: LoadedModel) -> list[bool]:
    return [parameter.is_meta for parameter in loaded.model.parameters()]


class _LastLogit:
    """The logit of token 7 at the last position."""

    positions = torch.tensor([5])

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 7]


def _sweep(loaded: LoadedModel) -> Tensor:
    sites = [Site(layer=1, name="z", head=2), Site(layer=0, name="mlp_out"), Site(layer=2, name="resid_pre")]
    variants = [[Change(site=site, op="zero")] for site in sites]
    batch = Batch.of(IDS.tolist(), device=loaded.device)
    values = torch.full((len(variants), batch.size), torch.nan)
    for part in sweep(loaded, batch, variants, _LastLogit()):
        values[list(part.variants)] = part.values
    torch.testing.assert_close(values, naive_sweep(loaded, batch, variants, _LastLogit()), atol=1e-5, rtol=0)
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_on_the_disk_change_nothing_and_nothing_stays_behind(family: str, tmp_path: Path) -> None:
    folder = save_model(tiny_model(family), tmp_path / "model")
    whole = as_loaded(tiny_model(family))
    loaded = load_model(ModelRef(id=str(folder)), device_map=_map(family, disk=(1, 2)), data_dir=tmp_path)
    before, hooks = _places(loaded), hook_count(loaded.model)
    assert any(before)
    assert not all(before)
    assert torch.equal(loaded.model(IDS).logits, whole.model(IDS).logits)
    assert loaded.anatomy.kind == whole.anatomy.kind
    assert loaded.anatomy.exchangeable == whole.anatomy.exchangeable
    assert torch.equal(_sweep(loaded), _sweep(whole))
    assert (_places(loaded), hook_count(loaded.model)) == (before, hooks)
    assert loaded.notes == (f"The model's parts are spread: {len(loaded.model.hf_device_map) - 2} on cpu, 2 on disk.",)


def test_edits_captures_and_sweeps_work_where_even_the_embedding_is_on_the_disk(
    tiny_folder: Path, llama: LoadedModel, tmp_path: Path
) -> None:
    loaded = load_model(ModelRef(id=str(tiny_folder)), device_map={"": "disk"}, data_dir=tmp_path)
    assert all(_places(loaded))
    assert loaded.device == torch.device("cpu")
    assert loaded.notes == ("The model's parts are spread: 1 on disk.",)
    sites = [Site(layer=1, name="resid_post"), Site(layer=2, name="z", head=3), Site(layer=0, name="neurons")]
    change = Change(site=Site(layer=0, name="attn_out"), op="add", value=torch.linspace(-1, 1, 32))
    got = []
    for model in (loaded, llama):
        with edited(model, [change]), captured(model, sites) as seen:
            logits = model.model(IDS).logits
        got.append([logits, *(seen[site] for site in sites)])
    assert all(torch.equal(one, other) for one, other in zip(*got, strict=True))
    assert torch.equal(_sweep(loaded), _sweep(llama))
    projection = loaded.anatomy.blocks[1].attn_out_proj
    assert projection is not None
    with pytest.raises(ModelError, match="kept off the device between forward passes"):
        dense_weight(projection)


def test_a_model_that_is_spread_by_itself_uses_the_disk_as_the_last_place(tiny_folder: Path, llama: LoadedModel, tmp_path: Path) -> None:
    ref = ModelRef(id=str(tiny_folder))
    loaded = load_model(ref, device_map="auto", max_memory={"cpu": 60_000}, data_dir=tmp_path)
    assert "disk" in loaded.model.hf_device_map.values()
    assert torch.equal(loaded.model(IDS).logits, llama.model(IDS).logits)
    assert load_model(ref, device_map="auto", max_memory={"cpu": 60_000}, data_dir=tmp_path) is loaded
    assert load_model(ref, device_map="auto", max_memory={"cpu": 61_000}, data_dir=tmp_path) is not loaded


def test_spread_is_the_device_map_auto(tiny_folder: Path, tmp_path: Path) -> None:
    ref = ModelRef(id=str(tiny_folder))
    assert load_model(ref, device="spread", data_dir=tmp_path) is load_model(ref, device_map="auto", data_dir=tmp_path)


def test_what_is_written_for_the_disk_goes_with_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelRef(id=str(tiny_folder)), device_map={"": "disk"}, data_dir=tmp_path)
    assert len(list((tmp_path / "offload").iterdir())) == 1
    forget_models()
    del loaded
    gc.collect()
    assert list((tmp_path / "offload").iterdir()) == []


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"": "cpu", "model.layers.1": "disk"}, "names 'the whole model' and, inside it, 'model.layers.1'"),
        ({"model.layers.0": "disk"}, "cannot be loaded"),
        ("everywhere", "cannot be loaded"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused_and_leaves_nothing(tiny_folder: Path, tmp_path: Path, device_map: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(ModelRef(id=str(tiny_folder)), device_map=device_map, data_dir=tmp_path)
    assert [entry for entry in tmp_path.rglob("*") if entry.name != "offload"] == []


def test_shared_weights_stay_together(tmp_path: Path) -> None:
    folder = save_model(tiny_model("gpt2"), tmp_path / "gpt2")
    split = {**_map("gpt2", disk=()), "lm_head": "disk"}
    with pytest.raises(ModelError, match=r"'lm_head.weight' shares the weights of 'transformer.wte.weight' .* at two places"):
        load_model(ModelRef(id=str(folder)), device_map=split, data_dir=tmp_path)


def test_weights_in_fewer_bits_do_not_wait_on_the_disk(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a part of .* in main memory or on the disk, where weights in nf4 cannot wait"):
        load_model(ModelRef(id=str(tiny_folder), quantization="nf4"), device_map=_map("llama", disk=(1,)), data_dir=tmp_path)


def test_the_best_device_with_room_is_taken_and_a_lesser_one_is_told() -> None:
    free = {"cuda": 3 * GIB, "cpu": 20 * GIB}
    asked = []

    def room(device: torch.device, needed: int) -> int:
        asked.append((device.type, needed))
        return free[device.type]

    small = on_one_device(2 * GIB, ["cuda", "cpu"], room, REF)
    assert (small.device, small.notes) == (torch.device("cuda"), ())
    large = on_one_device(8 * GIB, ["cuda", "cpu"], room, REF)
    assert large.device == torch.device("cpu")
    assert large.notes == ("The model runs on the CPU: its weights take 8.0 GiB, but 3.0 GiB are free on cuda.",)
    assert asked == [("cuda", 2 * GIB), ("cuda", 8 * GIB), ("cpu", 8 * GIB)]
    with pytest.raises(ModelTooLarge, match=r"'m' in float32 takes 30.0 GiB, but 3.0 GiB are free on cuda, 20.0 GiB are free on cpu"):
        on_one_device(30 * GIB, ["cuda", "cpu"], room, REF)
    with pytest.raises(ModelTooLarge, match=r"takes 8.0 GiB, but 3.0 GiB are free on cuda\."):
        on_one_device(8 * GIB, ["cuda"], room, REF)


def test_the_refusal_names_what_is_smaller() -> None:
    def step(**values: Any) -> str:
        with pytest.raises(ModelTooLarge) as refused:
            on_one_device(GIB, ["cpu"], lambda *_: 0, ModelRef(id="m", **values))
        return refused.value.next_step

    assert "dtype bfloat16, quantization nf4" in step()
    assert "dtype" not in step(dtype="bfloat16")
    assert "nf4" not in step(dtype="bfloat16", quantization="int8")


def test_a_part_that_does_not_fit_its_place_is_refused(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.models.loading.free_bytes", lambda _: 50_000)
    with pytest.raises(ModelTooLarge, match=r"the part of .* but 0.0 GiB are free on cpu"):
        load_model(ModelRef(id=str(tiny_folder)), device_map=_map("llama", disk=(1,)), data_dir=tmp_path)
    loaded = load_model(ModelRef(id=str(tiny_folder)), device_map={"": "disk"}, data_dir=tmp_path)
    assert all(_places(loaded))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ModelError, match="device 'cpu' and a device map were given"):
        wish("cpu", "auto", None, None)
    with pytest.raises(ModelError, match="belong to a device map"):
        wish("cpu", None, {"cpu": "1GiB"}, None)
    with pytest.raises(SpecError, match="device 'warp' cannot be used here"):
        wish("warp", None, None, None)
