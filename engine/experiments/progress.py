"""How far an ablation is, and what it shows so far."""

from collections.abc import Sequence

import numpy as np

from engine.experiments.ablation_work import Work
from engine.experiments.measured import Measured


class Progress:
    """Tells the recorder. A variant at a low layer is more of the work than one at a high layer.

    Attributes:
        fraction: share of the work that is done.
        prompts: how many are done with all variants.
    """

    def __init__(self, work: Work, measured: Measured) -> None:
        """Begins with what is known already."""
        self._work = work
        self._n_layers = work.loaded.anatomy.n_layers
        self._cost = np.repeat([self._n_layers - site.depth for site in work.sites], len(work.spec.seeds))
        self._total = float(len(work.prompts) * self._cost.sum())
        self.fraction = float((~np.isnan(measured.changed)).sum(axis=0) @ self._cost) / self._total
        self.prompts = 0
        self._clean = 0.0
        self._effects = np.zeros(len(work.sites))

    def say(self, message: str) -> None:
        """Tells what happens, at the share that is done."""
        self._work.recorder.progress(min(1.0, self.fraction), message)

    def add(self, variants: Sequence[int], new: np.ndarray) -> None:
        """So many `new` prompts [variants] went through these variants."""
        if not variants:
            self.say(f"running the unedited model{self._shown()}")
            return
        self.fraction += float(new @ self._cost[list(variants)]) / self._total
        layer = self._work.sites[variants[-1] // len(self._work.spec.seeds)].layer
        self.say(f"ablating layer {layer} (layers are 0 to {self._n_layers - 1}){self._shown()}")

    def batch_done(self, rows: Sequence[int], measured: Measured) -> None:
        """All of these prompts is known: the means so far become points of the run's curves."""
        self.prompts += len(rows)
        self._clean += float(measured.clean[rows].sum(dtype=np.float64))
        self._effects += measured.effects(rows, seeds=len(self._work.spec.seeds)).sum(axis=0)
        self._work.recorder.metric("clean", self._clean / self.prompts, self.prompts)
        self._work.recorder.metric("largest effect", self._effects[self._largest] / self.prompts, self.prompts)

    @property
    def _largest(self) -> int:
        return int(np.abs(self._effects).argmax())

    def _shown(self) -> str:
        if not self.prompts:
            return ""
        site, effect = self._work.sites[self._largest], self._effects[self._largest] / self.prompts
        return f"; largest effect on the first {self.prompts} prompts: {site.label} {effect:+.3f} {self._work.spec.unit}"
