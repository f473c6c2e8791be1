"""Downloads through the real hub library, from a hub on the loopback."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine.errors import ModelError, UnknownModel
from engine.models.hub import commit_of, downloaded_folder, hub_folder
from engine.models.weights import fingerprint
from tests.plugin_engine import Hub

REPO = "someone/tiny-llama"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def filled(hub: Hub, tiny_folder: Path, tmp_path: Path) -> Hub:
    """The hub with one model, beside whose files lie some that are not wanted."""
    files = Path(shutil.copytree(tiny_folder, tmp_path / "repo"))
    for name in ("modeling_evil.py", "pytorch_model.bin", "README.md"):
        (files / name).write_text("not wanted")
    hub.repos[REPO] = files
    return hub


@pytest.mark.parametrize("pinned", [False, True])
def test_a_hub_model_arrives_whole_and_without_code(filled: Hub, tiny_folder: Path, tmp_path: Path, pinned: bool) -> None:
    revision = filled.commit(REPO) if pinned else None
    folder = hub_folder(REPO, revision, endpoint=filled.url, cache_dir=tmp_path / "cache")
    assert fingerprint(folder) == fingerprint(tiny_folder)
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}


def test_a_downloaded_model_needs_no_network(filled: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = hub_folder(REPO, endpoint=filled.url, cache_dir=cache)
    assert hub_folder(REPO, endpoint=NOBODY, cache_dir=cache) == folder
    asked = len(filled.requests)
    assert hub_folder(REPO, filled.commit(REPO), endpoint=filled.url, cache_dir=cache) == folder
    assert len(filled.requests) == asked


def test_an_unknown_model_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="'someone/nothing' is not on the hub, or private"):
        hub_folder("someone/nothing", endpoint=hub.url, cache_dir=tmp_path)


def test_an_unknown_revision_is_named(filled: Hub, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="'someone/tiny-llama' has no revision 'v9' on the hub"):
        hub_folder(REPO, "v9", endpoint=filled.url, cache_dir=tmp_path / "cache")


def test_a_gated_model_says_how_to_get_it(filled: Hub, tmp_path: Path) -> None:
    filled.gated.add(REPO)
    with pytest.raises(ModelError, match=r"is gated.*Accept them at https://huggingface.co/someone/tiny-llama and set HF_TOKEN"):
        hub_folder(REPO, endpoint=filled.url, cache_dir=tmp_path / "cache")


def test_a_token_that_has_accepted_the_terms_opens_a_gated_model(
    filled: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.gated.add(REPO)
    filled.accepted.add("hf_accepted")
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ModelError, match="is gated"):
        hub_folder(REPO, endpoint=filled.url, cache_dir=tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert fingerprint(hub_folder(REPO, endpoint=filled.url, cache_dir=tmp_path / "cache")) == fingerprint(tiny_folder)
    assert filled.tokens == {"hf_stranger", "hf_accepted"}


def test_the_folder_tells_the_commit_that_was_resolved(filled: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    folder = hub_folder(REPO, "main", endpoint=filled.url, cache_dir=tmp_path / "cache")
    assert commit_of(folder) == filled.commit(REPO)
    assert commit_of(tiny_folder) is None


def test_a_cut_connection_is_taken_up_where_it_broke_off(
    filled: Hub, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept at a cut is whole chunks
    half = (tiny_folder / "model.safetensors").stat().st_size // 2
    filled.cut["model.safetensors"] = half
    assert fingerprint(hub_folder(REPO, endpoint=filled.url, cache_dir=tmp_path / "cache")) == fingerprint(tiny_folder)
    assert half - 1000 < filled.ranges["model.safetensors"] <= half


@pytest.mark.parametrize("pinned", [False, True])
def test_an_interrupted_download_is_no_model_and_the_next_try_uses_what_arrived(filled: Hub, tmp_path: Path, pinned: bool) -> None:
    cache, revision = tmp_path / "cache", filled.commit(REPO) if pinned else None
    filled.failing.add("model.safetensors")
    with pytest.raises(ModelError, match=r"could not be downloaded: .* whole files that have arrived are kept"):
        hub_folder(REPO, revision, endpoint=filled.url, cache_dir=cache)
    assert downloaded_folder(REPO, revision, cache) is None
    with pytest.raises(UnknownModel, match="nor downloaded before"):
        hub_folder(REPO, revision, endpoint=NOBODY, cache_dir=cache)
    filled.failing.clear()
    folder = hub_folder(REPO, revision, endpoint=filled.url, cache_dir=cache)
    assert downloaded_folder(REPO, revision, cache) == folder
    for name in ("config.json", "tokenizer.json"):
        assert sum(request.startswith("GET") and request.endswith(f"/{name}") for request in filled.requests) == 1


def test_a_model_without_safetensors_is_refused_before_anything_is_downloaded(filled: Hub, tmp_path: Path) -> None:
    (filled.repos[REPO] / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no safetensors weights on the hub.*refs/pr/1"):
        hub_folder(REPO, endpoint=filled.url, cache_dir=tmp_path / "cache")
    assert not any("resolve" in request for request in filled.requests)


def test_without_network_an_unknown_model_is_told_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UnknownModel, match="nor downloaded before, and the hub cannot be reached"):
        hub_folder(REPO, endpoint=NOBODY, cache_dir=tmp_path)
    assert time.monotonic() - started < 5


def test_a_hub_id_goes_all_the_way_to_a_loaded_model(filled: Hub, tiny_folder: Path, tmp_path: Path) -> None:
    program = (
        "from engine.models.loading import load_model; from engine.spec import ModelRef; import torch;"
        f"loaded = load_model(ModelRef(id='{REPO}'), device=torch.device('cpu')); print(loaded.fingerprint, loaded.commit)"
    )
    places = {"HF_ENDPOINT": filled.url, "HF_HOME": str(tmp_path / "home"), "PHILAB_DATA": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ, **places}, check=False
    )
    assert done.stdout.split() == [fingerprint(tiny_folder), filled.commit(REPO)], done.stderr
