"""Which sites a model has, and whether anything stays on it."""

from typing import NamedTuple, get_args

import torch

from engine.errors import LabError
from engine.experiments.checks.subject import RELATIVE, Measured, Subject, apart, fittings, plain
from engine.hooks.batch import Batch, forward
from engine.hooks.capture import captured
from engine.hooks.change import Change
from engine.hooks.sites import GLOBAL, PAIRS, Site, SiteName
from engine.hooks.wiring import edited

TOKENS = 4
"""Tokens that are enough to see that a site is there."""


class Found(NamedTuple):
    """Which sites were looked for, and how that came out.

    Attributes:
        has: names of sites that the model has.
        lacks: reasons, by name, why it does not have the others.
        wrong: sites that it claims to have, but that are not what they should be.
    """

    has: list[SiteName]
    lacks: dict[SiteName, str]
    wrong: list[str]


def sites_there_are(subject: Subject) -> Measured:
    """Every site is captured in every layer, and is a tensor of the width that the engine says."""
    found = Found([], {}, [])
    for name in get_args(SiteName):
        subject.pause()
        _look(subject, name, found)
    lacking = "".join(f"; lacks {name}: {reason}" for name, reason in found.lacks.items())
    wrong = f"; wrong: {', '.join(found.wrong[:5])}" if found.wrong else ""
    return Measured(len(found.wrong), 0, "sites", f"has {', '.join(found.has)}{lacking}{wrong}")


def _look(subject: Subject, name: SiteName, found: Found) -> None:
    sites = _everywhere(subject, name)
    batch = Batch.of([subject.prompts[0][:TOKENS]], device=subject.loaded.device)
    try:
        with captured(subject.loaded, sites) as got:
            forward(subject.model, batch)
    except LabError as refused:
        found.lacks[name] = refused.message.rstrip(".")
        return
    found.has.append(name)
    for site in sites:
        x, width = got.get(site), subject.loaded.anatomy.width(site)
        if x is None or (width is not None and x.shape[-1] != width) or not (torch.isfinite(x).all() or name in PAIRS):
            found.wrong.append(f"{site.label} {'was not passed' if x is None else list(x.shape)}")


def _everywhere(subject: Subject, name: SiteName) -> list[Site]:
    return [Site(name=name)] if name in GLOBAL else [Site(layer=layer, name=name) for layer in subject.layers]


def sites_at_once(subject: Subject) -> list[Site]:
    """All sites that can be captured together without changing how anything is computed.

    Scores and patterns are not among them: fused kernels do not make them, so attention is written out for them. Neither is what
    each head adds, which is worked out beside the model.
    """
    names = [name for name in get_args(SiteName) if name not in PAIRS and name != "head_out"]
    return [site for name in names if _has(subject, name) for site in _everywhere(subject, name)]


def _has(subject: Subject, name: SiteName) -> bool:
    try:
        for site in _everywhere(subject, name):
            subject.loaded.anatomy.check(site)
            subject.loaded.wiring.refuse_unreachable(site, subject.loaded.anatomy)
    except LabError:
        return False
    return True


def nothing_left(subject: Subject) -> Measured:
    """After all checks, and after an error in the middle of an edit: hooks and kernels as before, and the same logits to the bit."""
    _break_off(subject)
    now = fittings(subject.model)
    assert now.hooks == subject.at_first.hooks, f"{now.hooks - subject.at_first.hooks} hooks or replaced forwards stayed on the model"
    assert now.kernels == subject.at_first.kernels, f"attention is now computed by {now.kernels}; before, by {subject.at_first.kernels}"
    difference = apart(plain(subject.model, subject.prompts[0]), subject.alone[0])
    return Measured(difference, 0.0, RELATIVE, f"{now.hooks} hooks before and after")


class _BreakOffError(Exception):
    """Leaves an edit in the middle."""


def _break_off(subject: Subject) -> None:
    change = Change(site=Site(layer=0, name="resid_post"), op="zero")
    try:
        with edited(subject.loaded, [change]), captured(subject.loaded, [change.site]):
            raise _BreakOffError
    except _BreakOffError:
        return
