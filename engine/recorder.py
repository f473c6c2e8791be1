"""How a run speaks to the outside. The database implements `Recorder`, and so does the folder recorder here."""

from collections.abc import Mapping
from typing import Protocol
from uuid import UUID

from engine.provenance import Provenance
from engine.result import AnyResult, ArtifactRef
from engine.spec import AnySpec

JsonValue = str | int | float | bool | None


class Recorder(Protocol):
    """The receiving end of one run. Calls come from one thread, in the order begin, (reports)*, finish or fail."""

    @property
    def run_id(self) -> UUID:
        """UUIDv7 of the run, made by whoever made the recorder."""
        ...

    def begin(self, spec: AnySpec, provenance: Provenance) -> None:
        """The run starts; `provenance` has no duration yet."""
        ...

    def progress(self, fraction: float, message: str) -> None:
        """The share of the work that is done, 0 to 1, and what happens now."""
        ...

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """One point of a curve."""
        ...

    def item(self, key: str, values: Mapping[str, JsonValue]) -> None:
        """One row of the per-prompt table; `key` is the prompt's id and unique in the run."""
        ...

    def artifact(self, name: str, data: bytes, media_type: str) -> ArtifactRef:
        """Stores a file and returns its name and hash.

        Raises:
            StoreError: it could not be written.
        """
        ...

    def save(self, state: bytes) -> None:
        """Keeps what is needed to go on from here, in the place of what was kept before; dropped when the run is ok.

        Raises:
            StoreError: it could not be written; the run may go on.
        """
        ...

    def saved(self) -> bytes | None:
        """What was kept last, by this attempt or an earlier one at the same spec; None if there is nothing."""
        ...

    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop. The experiment asks at least once a second's worth of work."""
        ...

    def finish(self, result: AnyResult, provenance: Provenance) -> None:
        """The run is ok. Only now do its numbers count."""
        ...

    def fail(self, error: BaseException, traceback: str) -> None:
        """The run failed, or was cancelled (`RunCancelled`)."""
        ...
