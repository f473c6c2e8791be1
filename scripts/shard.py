"""One shard of a task, from the lease to the answer of the instance."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

from engine.errors import CommunityUnreachable, Conflict, LabError, SpecError
from engine.evidence.submission import payload_for
from engine.folder import read_folder
from engine.presets import cuts
from engine.settings import read_settings
from engine.spec.any import AnySpec, NamedSpec, TaskSpec, parse_spec
from engine.spec.sharing import check_shareable
from engine.store import write_atomically
from scripts.community import Answer, Community, in_path
from scripts.contributor_home import ContributorHome
from scripts.execution import Execution, execute, reread
from scripts.result_table import describe
from scripts.spool import Spool, deliver

HEARTBEATS_PER_LEASE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What the instance asks this contributor to run.

    Attributes:
        spec: the task's question on the rows of this shard.
        task_spec_hash: hash of the task's spec, sent back with the result.
        ttl_s: seconds that the lease lasts without a heartbeat.
    """

    lease_id: UUID
    task_id: UUID
    task_name: str
    spec: TaskSpec
    task_spec_hash: str
    ttl_s: float

    @property
    def named(self) -> NamedSpec:
        """The spec with what people call it."""
        return NamedSpec(spec=self.spec, name=self.task_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A shard that was run and sent, and what the instance answered."""

    shard: Shard
    done: Execution
    answer: Answer


def contribute_shard(
    community: Community,
    home: ContributorHome,
    *,
    task_id: str | None = None,
    preset: str | None = None,
    device: str | None = None,
    telemetry: bool = False,
    same_question_as: AnySpec | None = None,
    patience_s: float = 60.0,
    quiet: bool = False,
) -> Contribution | None:
    """One shard, run, sent and answered; None when there is no shard to have.

    Args:
        community: the instance, as the contributor.
        home: where runs and spool are.
        task_id: the task; any open one when left out.
        preset: hardware tier to state; it must not cut the shard.
        device: where to compute.
        telemetry: whether to send the geometry of the activations along.
        same_question_as: a spec of the contributor's own; the task must ask the same.
        patience_s: seconds to keep trying to send.
        quiet: print nothing but what is said before sending.

    Raises:
        LabError: the shard cannot be run, or the result is not taken or not sent yet.
    """
    shard = lease_shard(community, task_id)
    if shard is None:
        return None
    _check_question(shard, same_question_as)
    say = (lambda _: None) if quiet else print
    say(announcement(community, shard))
    with kept_alive(community, shard):
        done = _executed(shard, home, preset=preset, device=device, telemetry=telemetry, quiet=quiet)
    say(describe(done.result))
    answer = send(community, home, shard, done, patience_s=patience_s)
    say(outcome(community, answer))
    return Contribution(shard=shard, done=done, answer=answer)


def lease_shard(community: Community, task_id: str | None) -> Shard | None:
    """The next shard for this contributor; the one that it holds already comes first."""
    answer = community.get("/tasks/next", task_id=task_id)
    if answer is None:
        return None
    try:
        return Shard(
            lease_id=UUID(answer["lease_id"]),
            task_id=UUID(answer["task_id"]),
            task_name=str(answer["name"]),
            spec=check_shareable(parse_spec(answer["spec"])),  # whatever an instance says, no file of this machine is read for it
            task_spec_hash=str(answer["spec_hash"]),
            ttl_s=float(answer["ttl_s"]),
        )
    except (KeyError, TypeError, ValueError) as wrong:
        raise CommunityUnreachable(
            f"the instance leased something that this version cannot read: {wrong!r}.", next_step="Update philab."
        ) from wrong


def announcement(community: Community, shard: Shard) -> str:
    """What will be run and what will be sent, said before either happens."""
    spec, rows = shard.spec, shard.spec.dataset.rows
    return (
        f"Task: {shard.task_name}\n"
        f"Runs: {spec.kind} of {spec.model.id} on {len(rows) if rows else 'all'} prompts of {spec.dataset.name} ({spec.metric}).\n"
        f"Then sends to {community.url}, where it becomes public: the numbers, your user name, the model of your processor and GPU, "
        "versions and hashes."
    )


@contextmanager
def kept_alive(community: Community, shard: Shard) -> Iterator[None]:
    """Renews the lease while the shard is being run. A lease that is lost is no reason to stop: the result may still count."""
    over = Event()

    def beat() -> None:
        while not over.wait(max(1.0, shard.ttl_s / HEARTBEATS_PER_LEASE)):
            try:
                community.post(f"/leases/{in_path(str(shard.lease_id))}/heartbeat")
            except CommunityUnreachable:
                continue
            except LabError:
                return

    thread = Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def send(community: Community, home: ContributorHome, shard: Shard, done: Execution, *, patience_s: float = 60.0) -> Answer:
    """Puts the result into the spool, then sends it.

    Raises:
        LabError: as `scripts.spool.deliver`.
    """
    payload = payload_for(
        done.answer,
        done.provenance,
        task_id=shard.task_id,
        lease_id=shard.lease_id,
        task_spec_hash=shard.task_spec_hash,
        telemetry=done.telemetry,
    )
    spool = Spool(home)
    waiting = spool.add(url=community.url, task_id=str(shard.task_id), body=payload.model_dump_json())
    return deliver(spool, waiting, community, patience_s=patience_s)


def outcome(community: Community, answer: Answer) -> str:
    """The run's id at the instance, its verdict so far, and where to look."""
    link = answer.body["view_url"]
    return f"\nSent: {answer.body['id']} ({answer.body['status']}). See {community.url + link if link.startswith('/') else link}"


def _check_question(shard: Shard, own: AnySpec | None) -> None:
    if own is not None and own.question_sha256 != shard.spec.question_sha256:
        raise SpecError(
            f"your spec asks another question ({own.question_sha256[:12]}) than the task ({shard.spec.question_sha256[:12]}).",
            next_step="Leave --spec out to run the task's own.",
        )


def _executed(shard: Shard, home: ContributorHome, *, preset: str | None, device: str | None, telemetry: bool, quiet: bool) -> Execution:
    """The run of the shard; one that finished before, but was not sent, is taken as it is."""
    folder = home.runs() / str(shard.lease_id)
    if _finished(folder):
        return reread(folder)
    if preset:
        _check_preset(shard, preset, device)
    write_atomically(home.make(home.folder / "specs") / f"{shard.lease_id}.json", shard.spec.canonical_json())
    progress: Any = (lambda _, __: None) if quiet else None
    return execute(shard.named, folder, device=device, preset=preset, telemetry=telemetry, on_progress=progress)


def _finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_folder(folder).status == "ok"


def _check_preset(shard: Shard, preset: str, device: str | None) -> None:
    """A shard counts only as a whole."""
    from engine.models.loading import load_model

    anatomy = load_model(shard.spec.model, device=device, data_dir=read_settings().data_dir).anatomy
    rows = shard.spec.dataset.rows
    left_out = cuts(preset, rows=len(rows) if rows else 0, layers=anatomy.n_layers, heads=anatomy.n_heads)
    if left_out:
        raise Conflict(
            f"preset '{preset}' would run only {', '.join(left_out)}, but a shard counts as a whole.",
            next_step="Choose a larger preset, or leave it out.",
        )
