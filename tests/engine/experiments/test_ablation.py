"""Whole runs against a slow computation by hand: one prompt at a time, a plain torch hook, the formula of the metric."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from engine.errors import DatasetError, RunCancelled, SpecError
from engine.experiments.ablation import run_ablation
from engine.folder import FolderRecorder
from engine.hooks.bind import bind
from engine.hooks.edit import read_edits
from engine.hooks.sites import Site
from engine.hooks.wiring import edited
from engine.models.loading import LoadedModel, load_model
from engine.models.planted import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD
from engine.result import AblationResult
from engine.spec import AblationSpec, DatasetRef, Limits, ModelRef
from engine.spec.base import Rows
from engine.text.datasets import Dataset, Row, load_dataset
from tests.plugin_engine import TEXTS, as_loaded, hook_count, tiny_model

PROJECTIONS = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "phi": "model.layers.{}.self_attn.dense",
}
PLAIN = Dataset(name="plain", rows=tuple(Row(id=f"p{i}", text=text) for i, text in enumerate(TEXTS[:3])), sha256="0" * 64)
REFERENCE = Dataset(name="reference", rows=tuple(Row(id=f"r{i}", text=text[: 12 + 9 * i]) for i, text in enumerate(TEXTS)), sha256="1" * 64)
CHOICES = Dataset(
    name="choices",
    rows=(
        Row(id="a", prompt="the cat sat on the", target=" mat", distractor=" log"),
        Row(id="b", prompt="a bird is an", target=" animal", distractor=" stone"),
        Row(id="c", prompt="when Mary and John went to the shop John gave a book to", target=" Mary", distractor=" John"),
    ),
    sha256="2" * 64,
)
ZEROS = slice(None)


def spec_of(**values: Any) -> AblationSpec:
    values = {"model": ModelRef(id="tiny"), "dataset": DatasetRef(name="rows"), **values}
    if values.get("mode", "zero") != "zero":
        values.setdefault("reference", DatasetRef(name="reference", rows=Rows(start=0, stop=5)))
    return AblationSpec(**values)


def run(loaded: LoadedModel, folder: Path, dataset: Dataset = PLAIN, *, at_once: int | None = None, **values: Any) -> AblationResult:
    return run_ablation(
        spec_of(**values),
        FolderRecorder(folder),
        loaded,
        dataset,
        REFERENCE if "reference" in values or values.get("mode") else None,
        variants_per_forward=at_once,
    )


def effects_of(result: AblationResult) -> dict[tuple[int, int | None], float]:
    return {(site.layer, site.head): effect for site, effect in zip(result.effects.sites, result.effects.estimate, strict=True)}


class ByHand:
    """The model with a plain hook on the input of one output projection."""

    def __init__(self, loaded: LoadedModel, layer: int, head: int) -> None:
        self.loaded = loaded
        path = PROJECTIONS.get(loaded.model.config.model_type, "model.layers.{}.self_attn.o_proj").format(layer)
        self.projection = loaded.model.get_submodule(path)
        self.columns = slice(head * loaded.anatomy.d_head, (head + 1) * loaded.anatomy.d_head)

    def tokens(self, text: str) -> list[int]:
        return self.loaded.tokenizer(text)["input_ids"]

    def loss(self, text: str, stand_in: Callable[[int], Tensor] | None) -> float:
        """Mean next-token loss; `stand_in` gives what position t of the head holds."""
        tokens = self.tokens(text)

        def replace(_module: object, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].clone()
            for at in range(len(tokens)):
                z[0, at, self.columns] = stand_in(at)  # type: ignore[misc]
            return (z,)

        handle = self.projection.register_forward_pre_hook(replace) if stand_in else None
        try:
            logits = self.loaded.model(torch.tensor([tokens])).logits[0].double()
        finally:
            if handle is not None:
                handle.remove()
        log_p = logits.log_softmax(-1)
        return -sum(log_p[at - 1, tokens[at]].item() for at in range(1, len(tokens))) / (len(tokens) - 1)

    def z(self, text: str) -> Tensor:
        seen: list[Tensor] = []
        handle = self.projection.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, :, self.columns]))
        self.loaded.model(torch.tensor([self.tokens(text)]))
        handle.remove()
        return seen[0]

    def effect(self, stand_in: Callable[[Row], Callable[[int], Tensor]]) -> float:
        return float(np.mean([self.loss(row.text or "", stand_in(row)) - self.loss(row.text or "", None) for row in PLAIN.rows]))


def test_zero_ablation_is_the_computation_by_hand(loaded: LoadedModel, tmp_path: Path) -> None:
    result = run(loaded, tmp_path)
    assert result.clean.mean == pytest.approx(np.mean([ByHand(loaded, 0, 0).loss(row.text or "", None) for row in PLAIN.rows]), abs=1e-5)
    effects = effects_of(result)
    assert len(effects) == 12
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        by_hand = ByHand(loaded, layer, head).effect(lambda _: lambda _at: torch.zeros(()))
        assert effects[layer, head] == pytest.approx(by_hand, abs=1e-5)


def test_mean_ablation_is_the_computation_by_hand(loaded: LoadedModel, tmp_path: Path) -> None:
    effects = effects_of(run(loaded, tmp_path, mode="mean"))
    for layer, head in ((0, 1), (2, 3)):
        hand = ByHand(loaded, layer, head)
        mean = torch.cat([hand.z(row.text or "") for row in REFERENCE.rows]).mean(0)
        assert effects[layer, head] == pytest.approx(hand.effect(lambda _, mean=mean: lambda _at: mean), abs=1e-5)


def test_resample_ablation_is_the_computation_by_hand(loaded: LoadedModel, tmp_path: Path) -> None:
    seeds = (3, 8)
    question = spec_of(mode="resample", seeds=seeds).question_sha256
    effects = effects_of(run(loaded, tmp_path, mode="resample", seeds=seeds))
    for layer, head in ((0, 2), (2, 1)):
        hand = ByHand(loaded, layer, head)
        pool = [hand.z(row.text or "") for row in REFERENCE.rows]

        @cache
        def drawn(prompt: str, seed: int, layer: int = layer, head: int = head) -> int:
            digest = hashlib.sha256(f"{question}|{prompt}|{layer}|{head}|{seed}".encode()).digest()
            return int(np.random.default_rng(int.from_bytes(digest[:16], "big")).integers(len(REFERENCE.rows)))

        def stand_in(row: Row, seed: int, pool: list[Tensor] = pool, drawn: Callable[[str, int], int] = drawn) -> Callable[[int], Tensor]:
            z = pool[drawn(row.id, seed)]
            return lambda at: z[min(at, len(z) - 1)]

        by_hand = [hand.effect(lambda row, seed=seed, stand_in=stand_in: stand_in(row, seed)) for seed in seeds]
        assert effects[layer, head] == pytest.approx(float(np.mean(by_hand)), abs=1e-5)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_whole_outputs_are_taken_away_layer_by_layer(loaded: LoadedModel, tmp_path: Path, site: str, mode: str) -> None:
    result = run(loaded, tmp_path, site=site, mode=mode, **({"reference": DatasetRef(name="r")} if mode != "zero" else {}))
    assert [str(site.head) for site in result.effects.sites] == ["None"] * 3
    assert all(abs(effect) > 1e-4 for effect in result.effects.estimate)
    assert (result.coverage.heads, result.coverage.heads_available) == (0, 4)


@pytest.mark.parametrize("metric", ["loss", "target_loss", "logit_diff", "accuracy"])
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_batch_size_does_not_matter(llama: LoadedModel, tmp_path: Path, metric: str, mode: str) -> None:
    values = [
        run(llama, tmp_path / str(size), CHOICES, metric=metric, mode=mode, limits=Limits(batch_size=size)).effects.estimate
        for size in (1, 2, 8)
    ]
    assert values[1] == pytest.approx(values[0], abs=5e-6)
    assert values[2] == pytest.approx(values[0], abs=5e-6)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_half_precision_gives_about_the_same(llama: LoadedModel, tmp_path: Path, mode: str) -> None:
    half = as_loaded(tiny_model("llama").bfloat16(), "half")
    rough, exact = (run(loaded, tmp_path / loaded.ref.id, mode=mode).effects.estimate for loaded in (half, llama))
    assert rough == pytest.approx(exact, abs=0.1)
    assert rough != exact


def test_a_repeated_run_of_a_fixed_number_at_once_is_equal_to_the_byte(phi: LoadedModel, tmp_path: Path) -> None:
    first, second = (run(phi, tmp_path / name, mode="resample", seeds=(0, 1), at_once=4) for name in ("first", "second"))
    assert first == second


def test_a_repeated_run_is_equal_to_rounding(phi: LoadedModel, tmp_path: Path) -> None:
    first, second = (run(phi, tmp_path / name, mode="resample", seeds=(0, 1)) for name in ("first", "second"))
    assert second.effects.estimate == pytest.approx(first.effects.estimate, abs=1e-6)


def test_the_edits_are_kept_as_data_and_are_what_was_done(llama: LoadedModel, tmp_path: Path) -> None:
    result = run(llama, tmp_path, layers=(0, 2))
    edits = read_edits(json.loads((tmp_path / "artifacts" / "edits.json").read_bytes()))
    assert [edit.site for edit in edits] == list(result.effects.sites)
    for at in (1, 6):
        losses = []
        for changes in ([], bind([edits[at]], llama)):
            with edited(llama, changes):
                losses.append(np.mean([ByHand(llama, 0, 0).loss(row.text or "", None) for row in PLAIN.rows]))
        assert losses[1] - losses[0] == pytest.approx(result.effects.estimate[at], abs=1e-5)


def test_edits_of_several_seeds_are_kept_with_their_seeds(llama: LoadedModel, tmp_path: Path) -> None:
    run(llama, tmp_path, mode="resample", seeds=(3, 8), layers=(1,), heads=(0, 2))
    edits = read_edits(json.loads((tmp_path / "artifacts" / "edits.json").read_bytes()))
    assert [(edit.site.head, edit.op, edit.seed) for edit in edits] == [
        (0, "resample", 3),
        (0, "resample", 8),
        (2, "resample", 3),
        (2, "resample", 8),
    ]


def test_the_artefacts_hold_each_prompt_s_effects_and_the_means(llama: LoadedModel, tmp_path: Path) -> None:
    result = run(llama, tmp_path, mode="mean", layers=(0, 2))
    assert [artifact.name for artifact in result.artifacts] == ["effects.safetensors", "edits.json", "reference.safetensors"]
    with safe_open(tmp_path / "artifacts" / "effects.safetensors", "np") as file:
        effects, about = file.get_tensor("effects"), json.loads(file.metadata()["about"])
        assert file.get_tensor("clean").mean() == pytest.approx(result.clean.mean)
    assert effects.dtype == np.float32
    assert effects.mean(axis=0).tolist() == pytest.approx(result.effects.estimate, abs=1e-6)
    assert about["prompts"] == ["p0", "p1", "p2"]
    assert [Site.model_validate(site) for site in about["sites"]] == list(result.effects.sites)
    with safe_open(tmp_path / "artifacts" / "reference.safetensors", "np") as file:
        means = file.get_tensor("means")
    assert means.shape == (2, 4, 8)
    hand = ByHand(llama, 2, 1)
    assert means[1, 1] == pytest.approx(torch.cat([hand.z(row.text or "") for row in REFERENCE.rows]).mean(0).numpy(), abs=1e-5)


class Listening(FolderRecorder):
    """A folder recorder that remembers what it heard."""

    def __init__(self, folder: Path) -> None:
        self.heard: list[tuple[float, str]] = []
        super().__init__(folder, on_progress=lambda fraction, message: self.heard.append((fraction, message)))
        self.rows: dict[str, dict[str, Any]] = {}
        self.curves: dict[str, dict[int, float]] = {}

    def item(self, key: str, values: Any) -> None:
        self.rows[key] = dict(values)
        super().item(key, values)

    def metric(self, name: str, value: float, step: int = 0) -> None:
        self.curves.setdefault(name, {})[step] = value
        super().metric(name, value, step)


def test_the_recorder_hears_of_every_prompt_and_of_the_progress(llama: LoadedModel, tmp_path: Path) -> None:
    recorder = Listening(tmp_path)
    result = run_ablation(spec_of(limits=Limits(batch_size=2)), recorder, llama, PLAIN)
    fractions = [fraction for fraction, _ in recorder.heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    assert np.mean([row["clean"] for row in recorder.rows.values()]) == pytest.approx(result.clean.mean)
    assert list(recorder.curves["clean"]) == [2, 3]
    assert recorder.curves["clean"][3] == pytest.approx(result.clean.mean)
    assert recorder.curves["largest effect"][3] == pytest.approx(max(result.effects.estimate, key=abs))
    assert list(recorder.curves["variants per forward"]) == [0, 2]
    assert min(recorder.curves["cost of a variant"].values()) == 1
    assert "largest effect on the first 2 prompts: L" in recorder.heard[-1][1]
    assert [row["tokens"] for row in recorder.rows.values()] == [len(llama.tokenizer(row.text or "")["input_ids"]) for row in PLAIN.rows]


def test_limits_take_the_first_of_what_was_chosen_and_coverage_says_so(llama: LoadedModel, tmp_path: Path) -> None:
    result = run(llama, tmp_path, layers=(0, 2), heads=(1, 2, 3), limits=Limits(records=2, layers=1, heads=2))
    assert [site.label for site in result.effects.sites] == ["L0H1", "L0H2"]
    assert result.coverage.model_dump() == {
        "rows": 2,
        "rows_available": 3,
        "layers": 1,
        "layers_available": 3,
        "heads": 2,
        "heads_available": 4,
    }


def test_layers_come_in_the_order_of_the_spec(llama: LoadedModel, tmp_path: Path) -> None:
    ordered, swapped = (effects_of(run(llama, tmp_path / str(layers[0]), layers=layers)) for layers in ((0, 2), (2, 0)))
    assert next(iter(swapped)) == (2, 0)
    assert swapped == pytest.approx(ordered)


def test_one_prompt_has_no_error_and_says_so(llama: LoadedModel, tmp_path: Path) -> None:
    result = run(llama, tmp_path, limits=Limits(records=1))
    assert set(result.effects.se) == {0}
    assert result.effects.low == result.effects.estimate == result.effects.high
    assert "One prompt says nothing of others" in result.notes[0]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"layers": (0, 7)}, "layer 7 does not exist: 'llama' has layers 0 to 2. Correct 'layers' in the spec."),
        ({"heads": (4,)}, "head 4 does not exist: 'llama' has heads 0 to 3. Correct 'heads' in the spec."),
    ],
)
def test_an_index_outside_the_model_is_refused_with_its_range(
    llama: LoadedModel, tmp_path: Path, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(SpecError) as refused:
        run(llama, tmp_path, **values)
    assert str(refused.value) == text
    assert list(tmp_path.iterdir()) == []


def test_a_mode_without_its_reference_rows_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="mode 'mean' needs the rows of its 'reference' slice"):
        run_ablation(spec_of(mode="mean"), FolderRecorder(tmp_path), llama, PLAIN)


def test_a_dataset_that_does_not_fit_the_metric_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="row 'p0' has no 'prompt'"):
        run(llama, tmp_path, metric="logit_diff")


def test_a_cancelled_run_stops_with_nothing_left_on_the_model(llama: LoadedModel, tmp_path: Path) -> None:
    stop, heard = Event(), list[float]()

    def on_progress(fraction: float, _message: str) -> None:
        heard.append(fraction)
        if fraction > 0.3:
            stop.set()

    recorder = FolderRecorder(tmp_path, on_progress=on_progress, stop=stop)
    with pytest.raises(RunCancelled):
        run_ablation(spec_of(), recorder, llama, PLAIN)
    assert 0.3 < heard[-1] < 1
    assert hook_count(llama.model) == 0


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_the_sweep_finds_exactly_the_planted_heads(tmp_path: Path, mode: str) -> None:
    rows, others = (DatasetRef(name="planted_induction", rows=Rows(start=start, stop=start + 24)) for start in (0, 100))
    reference = None if mode == "zero" else others
    spec = AblationSpec(model=ModelRef(id="planted-induction"), dataset=rows, mode=mode, reference=reference, metric="target_loss")
    loaded = load_model(spec.model, device=torch.device("cpu"), data_dir=tmp_path)
    dataset, drawn = load_dataset(rows), load_dataset(others) if reference else None
    result = run_ablation(spec, FolderRecorder(tmp_path / "run"), loaded, dataset, drawn)
    effects = effects_of(result)
    planted = {PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD}
    assert all(abs(effect) < 0.05 for place, effect in effects.items() if place not in planted)
    assert all(effects[place] > 1 for place in planted)
    lowest = dict(zip(effects, result.effects.low, strict=True))
    assert all(lowest[place] > 0 for place in planted)
