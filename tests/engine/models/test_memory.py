from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import UnknownModel
from engine.models import memory
from engine.models.memory import bytes_by_place, estimate_memory, free_bytes, main_memory_bytes, weight_bytes
from engine.spec import ModelRef
from tests.plugin_engine import save_model, tiny_model

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}


def test_the_weights_are_measured_in_the_precision_they_are_loaded_in(tiny_folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert weight_bytes(tiny_folder, "float32") == 4 * parameters
    assert weight_bytes(tiny_folder, "bfloat16") == 2 * parameters


@pytest.mark.parametrize(("family", "values"), [("llama", WIDE), ("gpt2", {"n_embd": 128, "n_inner": 256}), ("gpt_neox_serial", WIDE)])
def test_under_quantisation_matrices_shrink_and_embeddings_stay(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = save_model(tiny_model(family, **values), tmp_path / family)
    configs = {"int8": BitsAndBytesConfig(load_in_8bit=True), "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    for kind, config in configs.items():
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"})
        tensors = {id(tensor): tensor for tensor in model.parameters()}.values()
        held = sum(tensor.nbytes for tensor in tensors)
        scales = [tensor.quant_state.absmax if kind == "nf4" else tensor.SCB for tensor in tensors if not tensor.is_floating_point()]
        exact = kind == "nf4" or family != "gpt2"  # GPT-2 stores its matrices the other way round, so that rows are taken for columns
        assert weight_bytes(folder, "float32", kind) == pytest.approx(
            held + sum(scale.nbytes for scale in scales), rel=0 if exact else 0.01
        )


def test_a_head_that_shares_weights_is_counted_once(tmp_path: Path) -> None:
    tied = tiny_model("llama", tie_word_embeddings=True)
    assert weight_bytes(save_model(tied, tmp_path / "tied"), "float32") == 4 * tied.num_parameters()


def test_bytes_are_told_apart_by_place(tiny_folder: Path) -> None:
    places = {"model.embed_tokens": 0, "model.norm": 0, "lm_head": "disk", **{f"model.layers.{layer}": "cpu" for layer in (0, 1, 2)}}
    found = bytes_by_place(tiny_folder, places, "float32", None)
    model = tiny_model("llama")
    assert found == {
        "0": 4 * (model.model.embed_tokens.weight.numel() + 32),
        "disk": 4 * model.lm_head.weight.numel(),
        "cpu": 4 * sum(parameter.numel() for parameter in model.model.layers.parameters()),
    }
    assert bytes_by_place(tiny_folder, {"": "cpu"}, "float32", None) == {"cpu": weight_bytes(tiny_folder, "float32")}


def test_keys_and_values_are_those_of_a_cache(tiny_folder: Path) -> None:
    batch, length = 3, 10
    estimate = estimate_memory(ModelRef(id=str(tiny_folder)), batch=batch, length=length)
    cache = tiny_model("llama")(torch.ones(batch, length, dtype=torch.long), use_cache=True).past_key_values
    assert estimate.cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert estimate.weights_bytes == weight_bytes(tiny_folder, "float32")
    assert estimate.activation_bytes is not None
    assert estimate.activation_bytes > batch * length * 4 * len(tiny_model("llama").lm_head.weight)
    assert estimate.total_bytes == estimate.weights_bytes + estimate.cache_bytes + estimate.activation_bytes
    half = estimate_memory(ModelRef(id=str(tiny_folder), dtype="bfloat16"), batch=batch, length=length)
    assert (2 * half.weights_bytes, 2 * half.cache_bytes) == (estimate.weights_bytes, estimate.cache_bytes)  # type: ignore[operator]


@pytest.fixture
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_a_preset_is_estimated_before_it_is_downloaded(nothing_downloaded: None) -> None:
    phi = estimate_memory(ModelRef(id="phi-2", dtype="float16"))
    assert phi.weights_bytes == 2 * 2_779_683_840
    assert (phi.cache_bytes, phi.total_bytes) == (None, phi.weights_bytes)
    small = estimate_memory(ModelRef(id="phi-2", dtype="float16", quantization="nf4")).weights_bytes
    assert small == 2 * 263_101_440 + (2_779_683_840 - 263_101_440) * 9 // 16


def test_an_unknown_size_is_said(nothing_downloaded: None) -> None:
    with pytest.raises(UnknownModel, match="the size of 'someone/large' is not known before it is downloaded"):
        estimate_memory(ModelRef(id="someone/large"))


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(CPU) > 2**20
    assert main_memory_bytes() > free_bytes(CPU)
    container = {"memory.max": "1073741824", "memory.current": "1073740800", "memory.stat": "anon 5\ninactive_file 24\n"}
    for name, text in container.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 1024 + 24
    assert main_memory_bytes() == 2**30
    (tmp_path / "memory.max").write_text("max")
    assert main_memory_bytes() > 2**30
