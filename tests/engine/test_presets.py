"""A preset is a cap that changes the spec's identity."""

import pytest

from engine.errors import SpecError
from engine.presets import apply_preset, cuts, presets
from engine.spec import AblationSpec, DatasetRef, Limits, ModelRef

SPEC = AblationSpec(model=ModelRef(id="m"), dataset=DatasetRef(name="d"))


def test_the_seed_tiers_exist() -> None:
    assert set(presets()) == {"cpu_sanity", "mps_fast", "gpu_starter", "gpu_expert", "gpu_full"}


def test_the_smaller_limit_counts() -> None:
    spec = SPEC.model_copy(update={"limits": Limits(records=10, layers=7, max_length=300)})
    limits = apply_preset(spec, "cpu_sanity").limits
    assert limits == Limits(records=10, layers=5, heads=2, max_length=192, batch_size=2)


def test_a_capped_spec_is_another_question() -> None:
    assert apply_preset(SPEC, "cpu_sanity").sha256 != SPEC.sha256
    assert apply_preset(SPEC, "cpu_sanity").question_sha256 != SPEC.question_sha256


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match="'huge'; expected one of: cpu_sanity"):
        apply_preset(SPEC, "huge")


def test_cuts_say_what_would_be_left_out() -> None:
    assert cuts("cpu_sanity", rows=24, layers=6, heads=4) == ["5 of 6 layers", "2 of 4 heads"]
    assert cuts("gpu_full", rows=10**6, layers=99, heads=99) == []
