"""The long part of an ablation: every prompt with every variant, in batches, kept on the way so that it can be stopped."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from engine.errors import RunCancelled, StoreError
from engine.experiments.ablation_work import Work
from engine.experiments.batches import Batches
from engine.experiments.measured import Measured, Unusable
from engine.experiments.metrics import readout_for
from engine.experiments.progress import Progress
from engine.experiments.stand_ins import Reference, StandIns
from engine.hooks.batch import Batch
from engine.hooks.pace import Pace
from engine.hooks.sweep import SweepPart, sweep

logger = logging.getLogger(__name__)

KEEP_EVERY_S = 5.0
"""Work that may be lost when a run is killed."""
KEEPING_SHARE = 0.05
"""Share of the time that may go into keeping."""


class Measuring:
    """Measures what an earlier attempt at the same run has not measured yet.

    Attributes:
        measured: what is known by now.
        progress: how far it is.
        batches: what the prompts are cut into.
        notes: what a reader of the result should know of how it was measured.
    """

    def __init__(self, work: Work, pace: Pace) -> None:
        """Takes up what the recorder has kept, if that belongs to the same work."""
        self._work = work
        self._pace = pace
        self.notes: list[str] = []
        self.measured = self._taken_up(Measured.nothing(prompts=len(work.prompts), variants=len(work.sites) * len(work.spec.seeds)))
        self.progress = Progress(work, self.measured)
        self.batches = Batches(work.spec.limits.batch_size, device=str(work.loaded.device), on_cut=self.progress.say)
        self._kept_at, self._keep_after_s = time.monotonic(), KEEP_EVERY_S

    def _taken_up(self, nothing: Measured) -> Measured:
        saved = self._work.recorder.saved()
        if saved is None:
            return nothing
        try:
            measured = nothing.restored(saved, self._work.identity)
        except Unusable as why:
            self.notes.append(f"What an earlier attempt had measured was left aside: {why}.")
            return nothing
        share = 1 - np.isnan(measured.changed).mean()
        self.notes.append(f"The run was stopped and went on later; {share:.0%} had been measured before.")
        return measured

    def measure(self, reference: Reference | None) -> None:
        """Everything that is missing. When the run is cancelled, what is known by then is kept.

        Raises:
            ModelError: memory ran out for a single prompt.
            RunCancelled: the recorder was asked to stop.
        """
        prompts = self._work.prompts
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row].tokens))  # so that little is spent on padding
        try:
            self.batches.go_through([prompts[row] for row in by_length], lambda some: self._measure_batch(by_length[some], reference))
        except RunCancelled:
            self._keep()
            raise
        self._tell_of_pace()

    def _measure_batch(self, rows: Sequence[int], reference: Reference | None) -> None:
        for part in self._swept(rows, reference):
            self.measured.clean[rows] = part.clean.float().cpu().numpy()
            new = self.measured.keep(rows, part.variants, part.values.float().cpu().numpy())
            self.progress.add(part.variants, new)
            if time.monotonic() - self._kept_at >= self._keep_after_s:
                self._keep()
        self.progress.batch_done(rows, self.measured)

    def _swept(self, rows: Sequence[int], reference: Reference | None) -> Iterator[SweepPart]:
        """What is missing for some prompts."""
        wanted = self.measured.missing(rows)
        if wanted is None:
            return
        spec, loaded, prompts = self._work.spec, self._work.loaded, [self._work.prompts[row] for row in rows]
        variants = StandIns(
            loaded=loaded,
            mode=spec.mode,
            sites=self._work.sites,
            seeds=spec.seeds,
            prompts=prompts,
            reference=reference,
            question=spec.question_sha256,
        )
        batch = Batch.of([prompt.tokens for prompt in prompts], device=loaded.device)
        readout, at_once, shortages = readout_for(spec.metric, prompts, loaded.device), Counter[int](), self._pace.shortages
        parts = sweep(
            loaded,
            batch,
            variants,
            readout,
            outlines=variants.outlines,
            wanted=wanted,
            cancelled=self._work.recorder.cancelled,
            pace=self._pace,
        )
        for part in parts:
            yield part
            at_once[len(part.variants)] += len(part.variants)
            if self._pace.shortages > shortages:
                shortages = self._pace.shortages
                self.progress.say("memory ran out: fewer variants share a forward pass")
        self._work.recorder.metric("variants per forward", at_once.most_common(1)[0][0], self.progress.prompts)

    def _keep(self) -> None:
        """Hands what is known to the recorder. A run that cannot be kept goes on all the same."""
        started = time.monotonic()
        try:
            self._work.recorder.save(self.measured.as_bytes(self._work.identity))
        except StoreError as full:
            logger.warning("what was measured could not be kept: %s", full, extra={"action": "state_lost"})
        self._kept_at = time.monotonic()
        self._keep_after_s = max(KEEP_EVERY_S, (self._kept_at - started) / KEEPING_SHARE)

    def _tell_of_pace(self) -> None:
        """Why so many variants shared a forward pass, and whether memory was too small."""
        for variants, cost in self._pace.costs().items():
            self._work.recorder.metric("cost of a variant", cost, variants)
        if self.batches.cut:
            self.notes.append(f"Memory ran out: batches were cut to {self.batches.size_text}.")
        elif self._pace.shortages:
            self.notes.append("Memory ran out: fewer variants shared a forward pass from then on.")
