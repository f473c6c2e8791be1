"""Reference activations in memory and on disk, and batches that become smaller."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from engine.errors import ModelError, StoreError
from engine.experiments.batches import Batches
from engine.experiments.kept import Kept
from engine.experiments.prompts import Prompt
from engine.experiments.stand_ins import Reference, measure_reference
from engine.hooks.sites import Site
from engine.models.loading import LoadedModel

PROMPTS = [Prompt(id=f"p{length}", tokens=tuple(range(1, length + 1)), scored_from=1) for length in (3, 7, 2, 5, 4)]


def no_news(message: str) -> None:
    """Nobody listens."""


def reference_of(loaded: LoadedModel, *, in_memory_bytes: int, size: int = 2) -> Reference:
    return measure_reference(
        loaded,
        PROMPTS,
        [Site(layer=layer, name="z") for layer in (0, 2)],
        batches=Batches(size, device="cpu", on_cut=no_news),
        keep=True,
        cancelled=lambda: False,
        in_memory_bytes=in_memory_bytes,
    )


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_disk_they_are_what_they_are_in_memory(llama: LoadedModel, temporary: Path, dtype: torch.dtype) -> None:
    plain, on_disk = (reference_of(llama, in_memory_bytes=limit) for limit in (2**20, 0))
    assert plain.prompts.keys() == on_disk.prompts.keys() == {0, 2}
    for layer, rows in plain.prompts.items():
        assert [len(row) for row in rows] == [len(prompt.tokens) for prompt in PROMPTS]
        assert all(torch.equal(one, other) for one, other in zip(rows, on_disk.prompts[layer], strict=True))
        assert torch.equal(plain.means[layer], on_disk.means[layer])
    kept = Kept([3], layers=1, in_memory_bytes=0)
    row = torch.randn(3, 4).to(dtype)
    kept.put(0, slice(0, 1), [row])
    assert torch.equal(kept.prompts[0][0], row)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow it")
def test_nothing_is_left_on_disk_even_while_it_is_used(llama: LoadedModel, temporary: Path) -> None:
    reference = reference_of(llama, in_memory_bytes=0)
    assert list(temporary.iterdir()) == []
    assert reference.prompts[0][1].abs().sum() > 0


def test_a_disk_that_is_too_small_is_told_with_a_way_out(temporary: Path) -> None:
    kept = Kept([2**40], layers=1, in_memory_bytes=0)
    with pytest.raises(StoreError, match=r"16384\.0 GiB of reference activations do not fit into .*TMPDIR"):
        kept.put(0, slice(0, 1), [torch.zeros(1, 4)])
    assert list(temporary.iterdir()) == []


def fails_above(size: int, done: list[slice]) -> None:
    if done[-1].stop - done[-1].start > size:
        torch.empty(2**50)


def test_batches_are_halved_until_they_fit_and_nothing_is_left_out() -> None:
    asked, done, news = list[slice](), list[int](), list[str]()
    batches = Batches(4, device="cpu", on_cut=news.append)

    def work(some: slice) -> None:
        asked.append(some)
        fails_above(1, asked)
        done.extend(range(some.start, some.stop))

    batches.go_through(PROMPTS, work)
    assert done == [0, 1, 2, 3, 4]
    assert [some.stop - some.start for some in asked] == [4, 2, 1, 1, 1, 1, 1]
    assert news == ["memory ran out: batches are cut to 2 prompts", "memory ran out: batches are cut to 1 prompt"]
    assert (batches.size, batches.cut) == (1, True)


def test_a_single_prompt_that_does_not_fit_is_named_with_its_length_and_the_device() -> None:
    asked = list[slice]()

    def work(some: slice) -> None:
        asked.append(some)
        fails_above(0, asked)

    with pytest.raises(ModelError, match=r"memory ran out on cuda:1 with a single prompt, 'p3' of 3 tokens\. Free memory, choose"):
        Batches(8, device="cuda:1", on_cut=no_news).go_through(PROMPTS, work)


def test_other_errors_are_not_taken_for_a_shortage() -> None:
    def work(some: slice) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(8, device="cpu", on_cut=no_news).go_through(PROMPTS, work)
