"""Self-test: every check of the engine on one model, each with the difference that was measured and the one that is allowed."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from engine.errors import LabError, RunCancelled, UnknownAnatomy
from engine.experiments.checks import decoding, identities, passes, places, replays
from engine.experiments.checks.subject import Measured, NotApplicable, Subject, fittings, plain, short_prompts, tolerance_of
from engine.hooks.sweep import stop_if
from engine.models.loading import LoadedModel
from engine.recorder import Recorder
from engine.result import Check, Coverage, SelfTestResult
from engine.spec.selftest import SelfTestSpec
from engine.text.datasets import Dataset, Row


class Trial(NamedTuple):
    """A check before it is made.

    Attributes:
        name: short, and its own.
        about: what is compared with what.
        measure: does it.
    """

    name: str
    about: str
    measure: Callable[[Subject], Measured]


CHECKS: tuple[Trial, ...] = (
    Trial("same twice", "the same forward pass twice, bit for bit", passes.same_twice),
    Trial("clean = plain", "the engine's forward pass with captures everywhere and a plain call, bit for bit", passes.clean_is_plain),
    Trial("padded left", "prompts padded in front and each prompt alone", passes.padded_left),
    Trial("padded right", "prompts padded behind and each prompt alone", passes.padded_right),
    Trial("cached", "a text fed in token by token with a cache and the whole text at once", decoding.cached),
    Trial("greedy", "tokens chosen in a left-padded batch with a cache and for each prompt alone without", decoding.greedy),
    Trial("replay, whole prompts", "the sweep and whole forward passes, loss over all tokens", replays.replay_of_all),
    Trial("replay, last token", "the sweep and whole forward passes, loss of the last token", replays.replay_of_last),
    Trial("sum of parts", "resid_post and resid_pre + attn_out + mlp_out", identities.sum_of_parts),
    Trial("chain of layers", "resid_pre of each layer and resid_post of the one below, bit for bit", identities.chain_of_layers),
    Trial("head = rows of W_O", "z of a head set to zero and its rows of the output weights set to zero", identities.head_is_its_rows),
    Trial("pattern · values = z", "z and each head's attention pattern times its values", identities.pattern_times_values),
    Trial("norm and head", "the logits and the final norm and output weights on the last resid_post", identities.norm_and_head),
    Trial("sites", "every site in every layer and the shape that it should have", places.sites_there_are),
    Trial("nothing left", "the model before all checks and after them, bit for bit", places.nothing_left),
)
"""All checks, in the order in which they are made; the last one looks for traces of the others."""


def run_selftest(spec: SelfTestSpec, recorder: Recorder, loaded: LoadedModel, dataset: Dataset) -> SelfTestResult:
    """How every check came out. A check that fails is a result, not an error.

    Args:
        spec: the model, and how much of it is checked.
        recorder: gets progress, and how many tokens of each prompt were used.
        loaded: the model of the spec.
        dataset: rows whose beginnings serve as prompts.

    Raises:
        DatasetError: a row has no tokens to speak of.
        RunCancelled: the recorder was asked to stop.
    """
    rows = dataset.rows[: spec.limits.records]
    subject = _subject(spec, recorder, loaded, rows)
    checks = list[Check]()
    for number, trial in enumerate(CHECKS):
        recorder.progress(number / len(CHECKS), f"checking: {trial.name}")
        subject.pause()
        with loaded.lock:
            checks.append(_made(trial, subject))
    return SelfTestResult(
        checks=tuple(checks), coverage=_coverage(subject, used=len(rows), available=len(dataset.rows)), notes=_notes(subject)
    )


def _subject(spec: SelfTestSpec, recorder: Recorder, loaded: LoadedModel, rows: Sequence[Row]) -> Subject:
    limits, at_first = spec.limits, fittings(loaded.model)
    prompts = short_prompts(rows, loaded, tokens=min(spec.tokens, limits.max_length))
    for number, prompt in enumerate(prompts):
        recorder.item(f"prompt {number}", {"tokens": len(prompt)})
    with loaded.lock:
        alone = tuple(plain(loaded.model, prompt) for prompt in prompts)
    return Subject(
        loaded=loaded,
        prompts=prompts,
        layers=tuple(range(loaded.anatomy.n_layers))[: limits.layers],
        heads=min(limits.heads or 1, loaded.anatomy.n_heads),
        tolerance=tolerance_of(loaded.model, layers=loaded.anatomy.n_layers),
        local=tolerance_of(loaded.model, layers=1),
        at_first=at_first,
        alone=alone,
        pause=lambda: stop_if(recorder.cancelled),
    )


def _made(trial: Trial, subject: Subject) -> Check:
    """The check, made. Only what the model lacks is left out; whatever else goes wrong is a failure, with its text."""
    try:
        found = trial.measure(subject)
    except RunCancelled:
        raise
    except (NotApplicable, UnknownAnatomy) as lacking:
        reason = lacking.message if isinstance(lacking, LabError) else str(lacking)
        return Check(name=trial.name, about=trial.about, passed=None, detail=f"not applicable: {reason}"[:2000])
    except Exception as wrong:
        text = f"{type(wrong).__name__}: {wrong}" if not isinstance(wrong, LabError | AssertionError) else str(wrong)
        return Check(name=trial.name, about=trial.about, passed=False, detail=text[:2000])
    return _judged(trial, found)


def _judged(trial: Trial, found: Measured) -> Check:
    known = math.isfinite(found.difference)
    return Check(
        name=trial.name,
        about=trial.about,
        passed=known and found.difference <= found.tolerance,
        difference=found.difference if known else None,
        tolerance=found.tolerance,
        unit=found.unit,
        detail=(found.detail if known else f"the numbers are not finite; {found.detail}")[:2000],
    )


def _coverage(subject: Subject, *, used: int, available: int) -> Coverage:
    anatomy = subject.loaded.anatomy
    return Coverage(
        rows=used,
        rows_available=available,
        layers=len(subject.layers),
        layers_available=anatomy.n_layers,
        heads=subject.heads,
        heads_available=anatomy.n_heads,
    )


def _notes(subject: Subject) -> tuple[str, ...]:
    dtype = str(subject.model.dtype).removeprefix("torch.")
    return (
        f"Computed in {dtype}, two ways through all {subject.loaded.anatomy.n_layers} layers agree when vectors differ by at most "
        f"{subject.tolerance:.1e} of their largest entry, and by {subject.local:.1e} within a layer.",
    )
