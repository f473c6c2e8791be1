import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from engine.errors import ModelError, UnknownModel
from engine.models.loading import forget_models, load_model, resolve_model
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


def test_the_last_model_stays_in_memory(tiny_folder: Path) -> None:
    ref = ModelRef(id=str(tiny_folder))
    first = load_model(ref, device=CPU)
    assert load_model(ref, device=CPU) is first
    assert load_model(ModelRef(id=str(tiny_folder), dtype="bfloat16"), device=CPU).model.dtype == torch.bfloat16
    assert load_model(ref, device=CPU) is not first


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


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no such model", "a/b/c", "~nobody/x"])
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
    with pytest.raises(ModelError, match="the config of"):
        load_model(ModelRef(id=str(folder)), device=CPU)


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


def _change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
