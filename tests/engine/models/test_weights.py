import json
import shutil
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.models.weights import fingerprint, stored_tensors, weight_files
from tests.plugin_engine import save_model, tiny_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def test_the_fingerprint_does_not_depend_on_how_weights_are_cut_into_files(tiny_folder: Path, tmp_path: Path) -> None:
    sharded = save_model(tiny_model("llama"), tmp_path / "sharded", max_shard_size="20KB")
    assert len(weight_files(sharded)) > 2
    assert fingerprint(sharded) == fingerprint(tiny_folder)
    assert len(fingerprint(sharded)) == 64


def test_the_fingerprint_sees_one_changed_byte(folder: Path, tiny_folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint(folder) != fingerprint(tiny_folder)


def test_the_fingerprint_sees_the_config_but_not_how_it_was_saved(folder: Path, tiny_folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "transformers_version": "0", "_name_or_path": "/somewhere"}))
    assert fingerprint(folder) == fingerprint(tiny_folder)
    file.write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert fingerprint(folder) != fingerprint(tiny_folder)


def test_the_fingerprint_sees_the_precision(tiny_folder: Path, tmp_path: Path) -> None:
    assert fingerprint(save_model(tiny_model("llama").half(), tmp_path / "half")) != fingerprint(tiny_folder)


def test_tensors_are_listed_by_name(tiny_folder: Path) -> None:
    tensors = stored_tensors(weight_files(tiny_folder))
    assert [tensor.name for tensor in tensors] == sorted(tensor.name for tensor in tensors)
    assert sum(tensor.elements for tensor in tensors) == sum(parameter.numel() for parameter in tiny_model("llama").parameters())


def test_a_folder_without_weights_is_refused_in_one_sentence(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as refused:
        weight_files(folder)
    assert refused.value.message == f"{folder} holds no weights: expected model.safetensors or model.safetensors.index.json."


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled files are never read, and model.safetensors is missing"):
        weight_files(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded = save_model(tiny_model("llama"), tmp_path / "sharded", max_shard_size="20KB")
    shard = weight_files(sharded)[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name} of its weights"):
        weight_files(sharded)


@pytest.mark.parametrize(("length", "text"), [(4, "is not a safetensors file"), (2000, "is not a safetensors file"), (-9, "is cut off at")])
def test_a_damaged_file_is_refused(folder: Path, length: int, text: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=text):
        fingerprint(folder)


def test_a_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        fingerprint(folder)
