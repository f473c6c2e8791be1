"""Text from strangers becomes a spec, or one clear sentence, quickly."""

import time
from pathlib import Path

import pytest

from engine.errors import SpecError
from engine.spec import parse_text, read_spec, shipped_specs
from engine.spec.reading import MAX_BYTES, read_yaml

GOOD = "kind: ablation\nmodel: {id: m}\ndataset: {name: planted_induction}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("- 1\n- 2", "list"),
        ("a: &x 1\nb: *x", "anchors and aliases"),
        ("kind: ablation\nkind: ablation", "line 2: key 'kind' stands twice"),
        ("x: !!python/object/apply:os.system [id]", "plain data"),
        ("x: !local 1", "plain data"),
        ("[" * 40_000, "nested deeper than 32"),
        ("{" * 40_000, "not JSON"),
        ("a: " + "x" * MAX_BYTES, "expected at most 65536"),
        ("a: [1", "not YAML"),
        ('{"kind": "ablation", ', "not JSON"),
        ("1: 2", "key 1 is not text"),
        (GOOD + "metric: no", "'metric'"),
        ("spec: {kind: ablation}\ncolour: red", "unknown key 'colour'"),
        ("spec: 3", "'spec' is not a mapping"),
        (GOOD + "x: \x00", "not YAML"),
        ("? [a, b]\n: 1", "a key is one word"),
    ],
)
def test_bad_text_is_refused_in_one_sentence_and_at_once(text: str, said: str) -> None:
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        parse_text(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 2


def test_yaml_means_what_it_looks_like() -> None:
    read = read_yaml("[no, 017, 1e3, 2026-01-02, true, ~, 12, 1.5, 0x10]")
    assert read == ["no", "017", 1000.0, "2026-01-02", True, None, 12, 1.5, "0x10"]


def test_a_name_and_a_description_are_not_part_of_the_identity() -> None:
    indented = GOOD.replace("\n", "\n  ")
    named = parse_text(f"name: n\ndescription: d\nspec:\n  {indented}")
    assert (named.name, named.description) == ("n", "d")
    assert named.spec.sha256 == parse_text(GOOD).spec.sha256


def test_a_spec_without_a_model_asks_the_default_one() -> None:
    assert parse_text("kind: ablation\ndataset: {name: d}", default_model="x").spec.model.id == "x"


def test_a_missing_file_names_the_shipped_specs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="planted_heads"):
        read_spec(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_every_shipped_spec_reads(name: str) -> None:
    named = read_spec(name)
    assert named.name
    assert named.description


PHILAB = """
id: head_scan
description: all heads of three layers
type: head_ablation
dataset: {name: epistemology_true_false, path: phi2_lab/data/epistemology_true_false.jsonl, format: jsonl}
layer_range: [1, 4]
heads: [0, 2]
ablation_mode: zero
metrics: [loss, accuracy]
hooks: [{name: h, point: {layer: 0, component: self_attn}}]
"""


def test_philab_yaml_is_read_unchanged_and_says_what_has_no_meaning() -> None:
    named = parse_text(PHILAB, default_model="microsoft/phi-2")
    spec = named.spec
    assert (named.name, spec.model.id, spec.layers, spec.heads, spec.metric) == ("head_scan", "microsoft/phi-2", (1, 2, 3), (0, 2), "loss")
    assert spec.dataset.name == "epistemology_true_false"
    assert any("accuracy" in note for note in named.notes)
    assert any("hooks" in note for note in named.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("type: head_ablation", "type: probe"), "'probe' cannot be imported"),
        (("layer_range: [1, 4]", "layer_range: [4, 1]"), "layer_range"),
        (("metrics: [loss, accuracy]", "metrics: [bleu]"), "none of the metrics"),
        (("metrics: [loss, accuracy]", "adapters: [lens]"), "'adapters'"),
        (("metrics: [loss, accuracy]", "colour: red"), "'colour' is not a key"),
        (("dataset: {name: epistemology_true_false, path: phi2_lab/data/epistemology_true_false.jsonl, format: jsonl}", ""), "'dataset'"),
        (("hooks: [{name: h, point: {layer: 0, component: self_attn}}]", "dataset2: 1"), "dataset2"),
    ],
)
def test_philab_yaml_that_has_no_counterpart_is_refused_by_name(change: tuple[str, str], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_text(PHILAB.replace(*change))
    assert said in str(caught.value)
