from pathlib import Path

import pytest
import torch

from engine.errors import ModelTooLarge
from engine.models import memory
from engine.models.memory import free_bytes, refuse_too_large, weight_bytes
from tests.plugin_engine import tiny_model

CPU = torch.device("cpu")


def test_the_weights_are_measured_in_the_precision_they_are_loaded_in(tiny_folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert weight_bytes(tiny_folder, "float32") == 4 * parameters
    assert weight_bytes(tiny_folder, "bfloat16") == 2 * parameters


def test_a_tiny_model_fits(tiny_folder: Path) -> None:
    assert free_bytes(CPU) > 2**20
    refuse_too_large(tiny_folder, dtype="float32", device=CPU, name="tiny")


def test_a_model_larger_than_the_memory_is_refused_with_both_sizes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = {"memory.max": "1073741824", "memory.current": "1073740800", "memory.stat": "anon 5\ninactive_file 24\n"}
    for name, text in container.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 1024 + 24
    with pytest.raises(ModelTooLarge, match=r"'tiny' in float32 takes 0.0 GiB, but 0.0 GiB are free on cpu. Choose a smaller model"):
        refuse_too_large(tiny_folder, dtype="float32", device=CPU, name="tiny")
