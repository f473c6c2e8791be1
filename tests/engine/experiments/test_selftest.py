"""The self-test passes on every family, and each of its checks fails on a model that was broken in just that way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from engine.errors import DatasetError, LabError, ModelError, RunCancelled, UnknownAnatomy
from engine.experiments import selftest
from engine.experiments.checks.subject import Measured, NotApplicable, Subject, apart
from engine.experiments.selftest import CHECKS, Trial, run_selftest
from engine.models.loading import LoadedModel
from engine.result import Check, SelfTestResult
from engine.spec import DatasetRef, Limits, ModelRef, Rows, SelfTestSpec
from engine.text.datasets import Dataset, Row, load_dataset
from tests.broken_models import BREAKS, hear_no_positions
from tests.plugin_engine import as_loaded, tiny_model

SPEC = SelfTestSpec(model=ModelRef(id="tiny"), tokens=12)
STORIES = load_dataset(SPEC.dataset)


class Listener:
    """A recorder that keeps what it hears."""

    def __init__(self, *, stop: bool = False) -> None:
        self.stop = stop
        self.items = dict[str, dict[str, Any]]()
        self.messages = list[str]()

    def progress(self, fraction: float, message: str) -> None:
        assert 0 <= fraction <= 1
        self.messages.append(message)

    def item(self, key: str, values: dict[str, Any]) -> None:
        self.items[key] = values

    def cancelled(self) -> bool:
        return self.stop


def answered(loaded: LoadedModel, spec: SelfTestSpec = SPEC, dataset: Dataset = STORIES, recorder: Any = None) -> SelfTestResult:
    return run_selftest(spec, recorder or Listener(), loaded, dataset)


def test_every_check_passes_on_every_family(loaded: LoadedModel) -> None:
    result = answered(loaded)
    assert [(check.name, check.detail) for check in result.checks if not check.passed] == []
    assert [check.name for check in result.checks] == [trial.name for trial in CHECKS]
    exact = {"same twice", "clean = plain", "chain of layers", "nothing left", "greedy", "sites"}
    assert {check.name for check in result.checks if check.tolerance == 0} == exact
    assert all(0 < check.tolerance < 5e-4 for check in result.checks if check.name not in exact)  # type: ignore[operator]
    assert result.coverage.model_dump() == {
        **{"rows": 3, "rows_available": 3, "layers": 3, "layers_available": 3, "heads": 1, "heads_available": 4}
    }


@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("phi", torch.float16)])
def test_half_precision_passes_within_its_roundings(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    result = answered(as_loaded(model))
    assert result.failed == ()
    whole, layer = 3**0.5 * (5e-6 + 4 * torch.finfo(dtype).eps), 5e-6 + 4 * torch.finfo(dtype).eps
    tolerances = {check.name: check.tolerance for check in result.checks}
    assert (tolerances["cached"], tolerances["sum of parts"]) == (pytest.approx(whole), pytest.approx(layer))
    assert f"{whole:.1e} of their largest entry, and by {layer:.1e} within a layer" in result.notes[0]


def make_only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leaves out the other checks."""
    monkeypatch.setattr(selftest, "CHECKS", tuple(trial for trial in CHECKS if trial.name in names))


@pytest.mark.parametrize(("check", "family", "breaks"), BREAKS)
def test_each_check_fails_on_a_model_that_breaks_it(
    check: str, family: str, breaks: Callable[[PreTrainedModel], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_only(monkeypatch, check)
    loaded = as_loaded(tiny_model(family))
    assert answered(loaded).checks[0].passed
    breaks(loaded.model)
    found = answered(loaded).checks[0]
    assert (found.name, found.passed) == (check, False)
    assert found.difference is None or found.difference > 2 * found.tolerance  # type: ignore[operator]
    assert found.detail


def test_every_check_has_a_model_that_breaks_it() -> None:
    assert [check for check, _, _ in BREAKS] == [trial.name for trial in CHECKS]


def test_a_broken_model_does_not_fail_what_it_does_not_break() -> None:
    model = tiny_model("gpt2")
    hear_no_positions(model)
    assert {check.name for check in answered(as_loaded(model)).failed} == {"padded left", "greedy"}


def only(monkeypatch: pytest.MonkeyPatch, measure: Callable[[Subject], Measured], loaded: LoadedModel) -> Check:
    monkeypatch.setattr(selftest, "CHECKS", (Trial("one", "this and that", measure),))
    return answered(loaded).checks[0]


def raising(error: Exception) -> Callable[[Subject], Measured]:
    def measure(_subject: Subject) -> Measured:
        raise error

    return measure


@pytest.mark.parametrize(
    ("error", "passed", "said"),
    [
        (NotApplicable("it keeps no cache."), None, "not applicable: it keeps no cache."),
        (UnknownAnatomy("no such site.", next_step="Choose another."), None, "not applicable: no such site."),
        (ModelError("the model's output is not finite."), False, "the model's output is not finite."),
        (LabError("something."), False, "something."),
        (RuntimeError("boom"), False, "RuntimeError: boom"),
        (AssertionError("a site was not passed"), False, "a site was not passed"),
        (ValueError("x" * 5000), False, f"ValueError: {'x' * 1988}"),
    ],
)
def test_only_what_a_model_lacks_is_not_applicable(
    error: Exception, passed: bool | None, said: str, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = only(monkeypatch, raising(error), llama)
    assert (check.passed, check.detail, check.difference) == (passed, said, None)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_a_failure(number: float, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    check = only(monkeypatch, lambda _: Measured(number, 1.0, "nats", "at L0H0"), llama)
    assert (check.passed, check.difference, check.detail) == (False, None, "the numbers are not finite; at L0H0")


def test_a_run_that_is_stopped_says_so(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunCancelled):
        answered(llama, recorder=Listener(stop=True))
    with pytest.raises(RunCancelled):
        only(monkeypatch, raising(RunCancelled("the run was cancelled.")), llama)


def test_what_is_not_plain_numbers_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed(nn.Linear):
        """Weights of another kind."""

    make_only(monkeypatch, "head = rows of W_O", "sum of parts")
    model = tiny_model("llama")
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.o_proj.__class__ = Packed
    checks = {check.name: check for check in answered(as_loaded(model)).checks}
    assert checks["head = rows of W_O"].passed is None
    assert "Packed" in checks["head = rows of W_O"].detail
    assert checks["sum of parts"].passed


def test_a_site_that_the_model_lacks_is_told_with_its_reason(phi: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    make_only(monkeypatch, "sites")
    detail = answered(phi).checks[0].detail
    assert "lacks resid_mid: PhiDecoderLayer has no site 'blocks.0.hook_resid_mid': its attention and MLP work side by side" in detail


def test_limits_cap_the_work_and_the_coverage_says_so(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    make_only(monkeypatch, "same twice", "sum of parts")
    spec = SPEC.model_copy(update={"limits": Limits(records=1, layers=2, heads=3, max_length=9)})
    heard = Listener()
    result = answered(llama, spec, recorder=heard)
    assert result.failed == ()
    coverage = result.coverage
    assert (coverage.rows, coverage.layers, coverage.heads) == (1, 2, 3)
    assert [values["tokens"] for values in heard.items.values()] == [9, 4]  # a second prompt, so that one of them is padded
    assert heard.messages[0] == "checking: same twice"


def test_prompts_end_where_the_model_has_no_more_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    make_only(monkeypatch, "greedy")
    loaded = as_loaded(tiny_model("gpt2", n_positions=12))
    heard = Listener()
    assert answered(loaded, SPEC.model_copy(update={"tokens": 64}), recorder=heard).failed == ()
    assert max(values["tokens"] for values in heard.items.values()) == 4  # so that eight more fit


def test_a_text_without_tokens_is_refused(llama: LoadedModel) -> None:
    rows = replace(STORIES, rows=(Row(id="short", text="a"),))
    with pytest.raises(DatasetError, match="row 'short' has 1 token"):
        answered(llama, dataset=rows)


def test_vectors_are_measured_by_their_largest_entry() -> None:
    one, other = torch.tensor([[1.0, 100.0], [0.0, 0.0]]), torch.tensor([[1.5, 100.0], [0.0, 0.0]])
    assert apart(one, other) == pytest.approx(0.005)
    assert apart(one, one) == 0
    assert apart(torch.tensor([[torch.nan]]), torch.tensor([[1.0]])) != 0
    with pytest.raises(AssertionError, match="cannot be compared"):
        apart(one, other[:1])


def test_rows_of_the_spec_are_those_that_are_used() -> None:
    assert SelfTestSpec(model=ModelRef(id="m")).dataset == DatasetRef(name="micro_stories", rows=Rows(start=0, stop=3))
