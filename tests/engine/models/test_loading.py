import gc
import json
import pickle
import shutil
import threading
import weakref
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from engine.errors import ModelError, ModelTooLarge, UnknownModel
from engine.models import loading, placement
from engine.models.loading import LoadedModel, forget_models, load_model, resolve_model
from engine.models.memory import free_bytes, weight_bytes
from engine.models.reading import shortage_told
from engine.models.weights import fingerprint
from engine.spec import ModelRef
from tests.plugin_engine import save_model, tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(autouse=True)
def _forget() -> None:
    forget_models()


def test_a_folder_is_loaded_as_it_is(tiny_folder: Path) -> None:
    loaded = load_model(ModelRef(id=str(tiny_folder)), device=CPU)
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(loaded.model(ids).logits, tiny_model("llama")(ids).logits)
    assert loaded.fingerprint == fingerprint(tiny_folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.max_length == 64
    assert loaded.tokenizer.decode(loaded.tokenizer("the cat")["input_ids"]) == "the cat"


def test_models_stay_in_memory_as_far_as_the_budget_goes(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref, half = ModelRef(id=str(tiny_folder)), ModelRef(id=str(tiny_folder), dtype="bfloat16")
    whole = weight_bytes(tiny_folder, "float32") * 1.01 / 2**30  # beside the weights there are a few buffers
    monkeypatch.setenv("PHILAB_MODEL_CACHE_GB", str(1.5 * whole))
    first = load_model(ref, device=CPU)
    assert load_model(half, device=CPU).model.dtype == torch.bfloat16
    assert load_model(ref, device=CPU) is first
    load_model(ModelRef(id=str(tiny_folder), attention="eager"), device=CPU)
    assert load_model(ref, device=CPU) is not first
    monkeypatch.setenv("PHILAB_MODEL_CACHE_GB", "1e-9")
    kept = load_model(half, device=CPU)
    assert load_model(half, device=CPU) is kept  # the last one stays, however large
    monkeypatch.setenv("PHILAB_MODEL_CACHE_GB", "0")
    forget_models()
    assert load_model(ref, device=CPU) is not load_model(ref, device=CPU)


def test_two_threads_that_want_one_model_load_it_once(tiny_folder: Path) -> None:
    got = list[LoadedModel]()
    threads = [
        threading.Thread(target=lambda dtype=dtype: got.append(load_model(ModelRef(id=str(tiny_folder), dtype=dtype), device=CPU)))
        for dtype in ("float32", "bfloat16") * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({id(loaded) for loaded in got}) == 2


def test_a_model_that_was_let_go_of_is_freed(tiny_folder: Path) -> None:
    loaded = load_model(ModelRef(id=str(tiny_folder)), device=CPU)
    model = weakref.ref(loaded.model)
    forget_models()
    assert loaded.model(torch.tensor([[3]])).logits.shape[-1] > 0
    del loaded
    gc.collect()
    assert model() is None


def test_the_device_is_that_of_the_settings(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHILAB_DEVICE", "cpu")
    loaded = load_model(ModelRef(id=str(tiny_folder)))
    assert loaded.device == CPU
    assert loaded is load_model(ModelRef(id=str(tiny_folder)), device="cpu")
    assert loaded.notes == ()
    assert loaded.commit is None


def test_a_run_that_finds_no_room_on_the_best_device_goes_to_the_next_one_and_says_so(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has a second device here, of which nothing is free."""
    monkeypatch.setattr(placement, "device_types", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(loading, "free_bytes", lambda device: 0 if device.type == "cuda" else free_bytes(device))
    loaded = load_model(ModelRef(id=str(tiny_folder)))
    assert loaded.device == CPU
    assert loaded.notes == ("The model runs on the CPU: its weights take 0.0 GiB, but 0.0 GiB are free on cuda.",)
    monkeypatch.setattr(loading, "free_bytes", lambda _: 1000)
    assert load_model(ModelRef(id=str(tiny_folder))) is loaded  # not even the CPU has room for another one now
    monkeypatch.undo()
    assert load_model(ModelRef(id=str(tiny_folder)), device="cpu").notes == ()


def test_a_model_larger_than_the_memory_is_refused_with_both_sizes(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_model(ModelRef(id=str(tiny_folder)), device=CPU)
    monkeypatch.setattr(loading, "free_bytes", lambda _: 1000)
    with pytest.raises(ModelTooLarge, match=r"in bfloat16 takes 0.0 GiB, but 0.0 GiB are free on cpu"):
        load_model(ModelRef(id=str(tiny_folder), dtype="bfloat16"), device=CPU)
    assert kept.model(torch.tensor([[3]])).logits.dtype == torch.float32  # let go of to make room, and still usable


def test_a_folder_saved_again_is_loaded_again(folder: Path) -> None:
    ref = ModelRef(id=str(folder))
    before = load_model(ref, device=CPU)
    save_model(tiny_model("llama", rms_norm_eps=1e-2), folder)
    assert load_model(ref, device=CPU).fingerprint != before.fingerprint


def test_the_attention_kernel_is_the_one_asked_for(tiny_folder: Path) -> None:
    for kernel in ("eager", "sdpa"):
        loaded = load_model(ModelRef(id=str(tiny_folder), attention=kernel), device=CPU)
        assert loaded.model.config._attn_implementation == kernel


def test_a_shipped_model_is_built_on_first_use(tmp_path: Path) -> None:
    loaded = load_model(ModelRef(id="planted-induction"), device=CPU, data_dir=tmp_path)
    assert resolve_model(ModelRef(id="planted-induction"), tmp_path).is_relative_to(tmp_path)
    assert loaded.anatomy.n_heads == 4


def test_a_name_spelled_like_a_preset_is_offered_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel, match=r"'phi2' is neither shipped.* Did you mean phi-2\? Shipped models: philab-micro"):
        load_model(ModelRef(id="phi2"), device=CPU)
    with pytest.raises(UnknownModel, match="'microsoft/phi-2' is neither shipped"):
        load_model(ModelRef(id="phi-2"), device=CPU)


def test_a_folder_with_the_name_of_a_preset_is_reached_by_its_path(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "phi-2")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(ModelRef(id="./phi-2")) == tmp_path / "phi-2"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no such model", "a/b/c", "~nobody/x", "~no-such-user/x"])
def test_an_unknown_folder_is_named_with_the_shipped_models(name: str) -> None:
    with pytest.raises(UnknownModel) as refused:
        load_model(ModelRef(id=name), device=CPU)
    assert str(refused.value) == f"there is no folder '{name}'. Shipped models: philab-micro, planted-induction."


def test_an_unknown_id_is_named_with_the_shipped_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownModel) as refused:
        load_model(ModelRef(id="someone/nothing"), device=CPU)
    assert str(refused.value) == (
        "'someone/nothing' is neither shipped, nor a folder, nor downloaded before, and the hub cannot be reached (OfflineModeIsEnabled). "
        "Check the network, or choose a shipped model. Shipped models: philab-micro, planted-induction."
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError("no")])
def test_memory_that_ends_while_loading_is_a_refusal(error: Exception) -> None:
    with pytest.raises(ModelTooLarge, match="the memory ran out while 'm' was loaded"), shortage_told(ModelRef(id="m")):
        raise error
    with pytest.raises(RuntimeError, match="something else"), shortage_told(ModelRef(id="m")):
        raise RuntimeError("something else")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{folder} holds no weights: expected model.safetensors"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights .* the first is model.layers.1.self_attn.o_proj.weight"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    _change_config(folder, vocab_size=77)
    with pytest.raises(ModelError, match=f"'{folder}'"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_code_from_a_model_is_never_run(folder: Path) -> None:
    _change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match=r"comes with code of its own, which is never run, and transformers has no class for it"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_code_beside_an_architecture_that_the_library_knows_is_passed_by(folder: Path) -> None:
    _change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    _change_config(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    loaded = load_model(ModelRef(id=str(folder)), device=CPU)
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(loaded.model(ids).logits, tiny_model("llama")(ids).logits)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ModelError, match="pickled files are never read"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_what_fails_to_load_is_not_kept(folder: Path) -> None:
    good = (folder / "config.json").read_text()
    _change_config(folder, vocab_size=77)
    with pytest.raises(ModelError):
        load_model(ModelRef(id=str(folder)), device=CPU)
    assert len(loading._cache) == 0
    (folder / "config.json").write_text(good)
    assert load_model(ModelRef(id=str(folder)), device=CPU).anatomy.n_layers == 3


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(ModelError, match="holds an adapter, not a whole model"):
        load_model(ModelRef(id=str(folder)), device=CPU)


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="the tokenizer of"):
        load_model(ModelRef(id=str(tmp_path / "bare")), device=CPU)


def test_a_kernel_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_model(tiny_model("gemma2"), tmp_path / "gemma")
    with pytest.raises(ModelError, match="cannot be loaded: Gemma2ForCausalLM does not support"):
        load_model(ModelRef(id=str(folder), attention="sdpa"), device=CPU)


def _change_config(folder: Path, name: str = "config.json", **values: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
