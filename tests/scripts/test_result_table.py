from engine.hooks.sites import Site
from engine.result import AblationResult, Check, Coverage, Effects, Estimate, SelfTestResult
from scripts.result_table import ProgressLine, describe, table


def result() -> AblationResult:
    return AblationResult(
        clean=Estimate(mean=1.5, se=0.1, low=1.3, high=1.7, n=8),
        effects=Effects(
            metric="loss",
            unit="nats",
            sites=(Site(layer=0, name="z", head=0), Site(layer=1, name="z", head=2)),
            estimate=(0.01, -2.0),
            se=(0.1, 0.1),
            low=(-0.2, -2.2),
            high=(0.2, -1.8),
            n=8,
        ),
        coverage=Coverage(rows=8, rows_available=8, layers=2, layers_available=2, heads=1, heads_available=4),
        notes=("one thing to know",),
    )


def test_columns_line_up():
    assert table(["a", "bb"], [["x", "1"], ["long", "22"]]) == "a     bb\n----  --\nx      1\nlong  22"


def test_the_largest_effect_comes_first_with_its_interval():
    lines = describe(result()).splitlines()
    assert lines[0] == "loss of the unedited model: 1.5000 nats (1.3000 .. 1.7000, 8 prompts)"
    rows = [line.split() for line in lines if line.startswith("L")]
    assert rows == [["L1H2", "-2.0000", "-2.2000", "..", "-1.8000", "8"], ["L0H0", "+0.0100", "-0.2000", "..", "+0.2000", "8"]]
    assert lines[-1] == "note: one thing to know"


def test_checks_are_lines_and_what_did_not_pass_is_told_in_full():
    checks = (
        Check(name="one", about="this and that", passed=True, difference=0.0, tolerance=1.1e-5, unit="nats"),
        Check(name="two", about="here and there", passed=False, difference=0.25, tolerance=1.1e-5, unit="nats", detail="largest at L0H1"),
        Check(name="three", about="now and then", passed=None, detail="not applicable: no cache."),
    )
    lines = describe(SelfTestResult(checks=checks, coverage=result().coverage, notes=("mind this",))).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["one", "passed", "0", "1.1e-05", "nats"],
        ["two", "FAILED", "0.25", "1.1e-05", "nats"],
        ["three", "not", "applicable"],
    ]
    assert lines[6:] == [
        "two: here and there. largest at L0H1",
        "three: now and then. not applicable: no cache.",
        "2 checks made, 1 failed, 1 not applicable.",
        "note: mind this",
    ]


def test_progress_is_a_line_per_tenth_when_nobody_watches(capsys):
    line = ProgressLine()
    for step in range(101):
        line(step / 100, "head")
    assert len(capsys.readouterr().err.splitlines()) == 11
