"""Whole forward passes: the engine's against a plain call, once against again, padded against alone."""

from typing import Literal

from engine.experiments.checks.places import sites_at_once
from engine.experiments.checks.subject import RELATIVE, Measured, Subject, apart, largest, plain
from engine.hooks.batch import forward
from engine.hooks.capture import captured


def same_twice(subject: Subject) -> Measured:
    """The same plain call again."""
    again = [apart(plain(subject.model, prompt), alone) for prompt, alone in zip(subject.prompts, subject.alone, strict=True)]
    return largest(_by_prompt(again), 0.0)


def clean_is_plain(subject: Subject) -> Measured:
    """The engine's forward pass with captures everywhere, against a plain call."""
    sites = sites_at_once(subject)
    with captured(subject.loaded, sites) as got:
        logits = forward(subject.model, subject.first())[0]
    assert len(got) == len(sites), f"{len(sites) - len(got)} of {len(sites)} sites were passed without being seen"
    return Measured(apart(logits, subject.alone[0]), 0.0, RELATIVE, f"{len(sites)} sites captured at once")


def padded_left(subject: Subject) -> Measured:
    """Prompts of different lengths in one batch, padded in front, against each alone."""
    return _padded(subject, "left")


def padded_right(subject: Subject) -> Measured:
    """Prompts of different lengths in one batch, padded behind, against each alone."""
    return _padded(subject, "right")


def _padded(subject: Subject, side: Literal["left", "right"]) -> Measured:
    batch = subject.batch(side=side)
    logits, at_tokens = forward(subject.model, batch), batch.attention_mask.bool()
    return largest(_by_prompt([apart(logits[row][at_tokens[row]], alone) for row, alone in enumerate(subject.alone)]), subject.tolerance)


def _by_prompt(differences: list[float]) -> list[tuple[float, str]]:
    return [(difference, f"in prompt {number}") for number, difference in enumerate(differences)]
