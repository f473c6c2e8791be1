import pytest

from app.results import selftest
from app.results.ablation import effect_rows, table_rows, what_it_does_not_show, what_it_shows
from engine.hooks.sites import Site
from engine.result import AblationResult, Check, Coverage, Effects, Estimate, SelfTestResult
from engine.spec import ModelRef, SelfTestSpec, parse_spec

SPEC = parse_spec(
    {"kind": "ablation", "model": {"id": "planted-induction"}, "dataset": {"name": "planted_induction"}, "metric": "target_loss"}
)


def result(*effects: float, spread: float = 0.1) -> AblationResult:
    return AblationResult(
        clean=Estimate(mean=0.5, se=0.01, low=0.48, high=0.52, n=8),
        effects=Effects(
            metric="target_loss",
            unit="nats",
            sites=tuple(Site(layer=0, name="z", head=head) for head in range(len(effects))),
            estimate=effects,
            se=tuple(spread / 2 for _ in effects),
            low=tuple(effect - spread for effect in effects),
            high=tuple(effect + spread for effect in effects),
            n=8,
        ),
        coverage=Coverage(rows=8, rows_available=8, layers=1, layers_available=1, heads=len(effects), heads_available=len(effects)),
    )


def test_the_sentence_names_the_largest_effect_its_unit_interval_and_prompts():
    text = what_it_shows(SPEC, result(0.02, 1.25, -0.3)).replace("\\", "")
    assert "L0H1 hurts most" in text
    assert "+1.250 nats [1.150, 1.350]" in text
    assert "8 prompts" in text
    assert "2 of 3 heads have" in text


def test_a_loss_that_falls_is_called_help():
    assert "L0H0 helps most" in what_it_shows(SPEC, result(-1.0, 0.2))


def test_a_logit_difference_that_falls_is_called_harm():
    spec = SPEC.model_copy(update={"metric": "logit_diff"})
    assert "L0H0 hurts most" in what_it_shows(spec, result(-1.0, 0.2))


def test_nothing_found_is_said_as_such():
    assert what_it_shows(SPEC, result(0.01, -0.02)).startswith("None of 2 heads has an effect on the loss on the target")


def test_the_limits_are_said_and_mention_many_looks_only_where_there_were_many():
    assert "at 3 places at once" in what_it_does_not_show(result(0.1, 0.2, 0.3))
    assert "at once" not in what_it_does_not_show(result(0.1))


@pytest.mark.parametrize("rows", [effect_rows(result(0.1, -2.0)), table_rows(result(0.1, -2.0))])
def test_rows_keep_every_site(rows):
    assert len(rows) == 2


def test_the_table_begins_with_the_largest_effect_of_either_sign():
    assert [row["site"] for row in table_rows(result(0.1, -2.0, 1.0))] == ["L0H1", "L0H2", "L0H0"]


CHECKED = SelfTestSpec(model=ModelRef(id="m"))


def checks(*passed: bool | None) -> SelfTestResult:
    made = [Check(name=f"check {at}", about="this and that", passed=one, detail="because") for at, one in enumerate(passed)]
    coverage = Coverage(rows=3, rows_available=3, layers=2, layers_available=6, heads=1, heads_available=4)
    return SelfTestResult(checks=tuple(made), coverage=coverage)


def test_a_selftest_says_whether_the_engine_can_be_trusted():
    text = selftest.what_it_shows(CHECKED, checks(True, True, None)).replace("\\", "")
    assert text == "The engine can be trusted with m in float32 here: 2 checks made, none failed."
    failed = selftest.what_it_shows(CHECKED, checks(True, False, None)).replace("\\", "")
    assert failed == "1 of 2 checks failed on m in float32: check 1. Do not rely on what they are about."
    assert "with 2 of 6 layers" in selftest.what_it_does_not_show(checks(True))


def test_a_selftest_on_fewer_bits_says_so():
    spec = CHECKED.model_copy(update={"model": ModelRef(id="m", quantization="nf4")})
    assert "m in nf4 here" in selftest.what_it_shows(spec, checks(True))


def test_checks_that_failed_come_first_in_the_table():
    rows = selftest.table_rows(checks(True, None, False))
    assert [(row["check"], row["outcome"]) for row in rows] == [
        ("check 2", "FAILED"),
        ("check 0", "passed"),
        ("check 1", "not applicable"),
    ]
