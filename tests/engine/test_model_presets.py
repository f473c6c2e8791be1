"""Short names of models, judged by the models that transformers builds from the published shapes."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine.model_presets import close_names, full_id, model_presets, preset_of
from engine.models.reference import SHIPPED
from engine.models.weights import stored_tensors, weight_files

MIN_TOKENS = {"tiny-gpt2": 1024, "phi-3-mini": 4096, "llama-3.2-1b": 8192}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi-2": ("phi", {"vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32}),
    "phi-3-mini": ("phi3", {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}),
    "llama-3.2-1b": (
        "llama",
        {
            **{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
            **{"head_dim": 64, "tie_word_embeddings": True},
        },
    ),
    "llama-3-8b": (
        "llama",
        {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8},
    ),
    "mistral-7b": ("mistral", {"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}),
    "tiny-gpt2": ("gpt2", {"n_embd": 2, "n_layer": 2, "n_head": 2}),
    "gpt2": ("gpt2", {}),
    "pythia-70m": (
        "gpt_neox",
        {"vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8},
    ),
    "qwen3-0.6b": (
        "qwen3",
        {
            **{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
            **{"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
        },
    ),
    "gemma-3-1b": (
        "gemma3_text",
        {
            **{"vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4},
            **{"num_key_value_heads": 1, "head_dim": 256},
        },
    ),
}
"""Published shapes; what they leave out is the default of transformers."""


@pytest.mark.parametrize("key", SHAPES)
def test_the_counts_are_those_of_the_published_shape(key: str) -> None:
    kind, values = SHAPES[key]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    matrices = sum(m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and n != "lm_head")
    preset = model_presets()[key]
    assert preset.parameters == model.num_parameters()
    assert preset.dense_parameters == model.num_parameters() - matrices
    assert preset.family == kind


def test_the_shipped_models_are_counted_as_they_lie_there(tmp_path) -> None:
    for name, where in SHIPPED.items():
        tensors = stored_tensors(weight_files(where(tmp_path)))
        preset = model_presets()[name]
        assert preset.hub_id is None
        assert preset.parameters == sum(tensor.elements for tensor in tensors)
        matrices = [t for t in tensors if len(t.shape) == 2 and re.search(r"(attn|mlp)\.", t.name)]
        assert preset.parameters - preset.dense_parameters == sum(tensor.elements for tensor in matrices)


def test_a_short_name_stands_for_one_hub_id() -> None:
    assert full_id("phi-2") == "microsoft/phi-2"
    assert full_id("phi-3-mini") == full_id("phi3-mini") == "microsoft/Phi-3-mini-4k-instruct"
    assert full_id("llama-3-8b") == "meta-llama/Meta-Llama-3-8B-Instruct"
    for name in ("philab-micro", "planted-induction", "microsoft/phi-2", "./phi-2", "somebody/phi-2", "PHI-2"):
        assert full_id(name) == name
    presets = model_presets().values()
    names = [name for preset in presets for name in (preset.key, *preset.aliases)]
    assert len(set(names)) == len(names)
    assert len({preset.model_id for preset in presets}) == len(presets)


def test_a_preset_is_found_by_short_name_and_by_hub_id() -> None:
    assert preset_of("phi-2") is preset_of("microsoft/phi-2") is model_presets()["phi-2"]
    assert preset_of("somebody/phi-2") is None
    assert {key: model_presets()[key].context_tokens for key in MIN_TOKENS} == MIN_TOKENS


def test_names_spelled_alike_are_offered_but_never_taken() -> None:
    assert close_names("phi2") == ["phi-2"]
    assert close_names("microsoft/phi2")[0] == "microsoft/phi-2"
    assert close_names("Llama-3.2-1B")[0] == "llama-3.2-1b"
    assert close_names("xyzzy") == []
    assert full_id("phi2") == "phi2"
