"""`philab demo`: the whole chain on this machine. A real instance, five contributors, twelve real runs over HTTP, a finding."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import CommunityUnreachable, NotAllowed
from engine.settings import Settings, read_settings
from engine.spec.base import Rows
from engine.spec.reading import read_spec, spec_to_yaml
from scripts.community import Community
from scripts.contribute import listed
from scripts.contributor_home import ContributorHome, Identity
from scripts.exit_code import command
from scripts.result_table import table
from scripts.serving import free_port, wait_for
from scripts.shard import Contribution, contribute_shard

if TYPE_CHECKING:
    from db.connection import Database

SPEC = "planted_heads"
SHARDS, SHARD_SIZE, REPLICAS = 6, 40, 2
NAMES = ("demo-1", "demo-2", "demo-3", "demo-4", "demo-5")
DELTA = 0.05
SETTLE_S = 30.0
OUT = Path("results/demo")


@command
def main(argv: Sequence[str]) -> None:
    """Runs the demo, or removes what it made."""
    asked = _parser().parse_args(argv)
    settings = read_settings()
    from db.connection import open_database

    if settings.mode != "local":
        raise NotAllowed("the demo is for a lab of your own, not for a hosted instance.", next_step="Unset PHILAB_MODE.")
    database = open_database(settings)
    try:
        if asked.remove:
            counts = _remove(database, settings, people=True)
            print("Removed: " + ", ".join(f"{number} {what}" for what, number in counts.items()) + ".")
        else:
            _demonstrate(database, settings)
    finally:
        database.close()


def _demonstrate(database: "Database", settings: Settings) -> None:
    started = time.monotonic()
    with instance(settings) as url:
        print(f"1. A lab of its own is running at {url}.")
        owner = Community(url, _owner_key(database, settings))
        homes = _contributors(database, settings, url)
        task = _create_task(owner)
        print(f"3. Task '{task['name']}': {SHARDS} shards of {SHARD_SIZE} prompts × {REPLICAS} replicas. Every run below is computed now.")
        _contribute(url, homes, task["id"])
        findings = _settled(owner, task["id"])
    print(f"\n4. What they found together ({time.monotonic() - started:.0f} s after the start):\n")
    _show(findings)
    for file in _plot(findings):
        print(f"wrote {file}")
    print("\nThe right answer is known here: the model's weights were written so that L0H1 and L1H2 do the work, and no other head.")
    print("Look at it: make app (or: philab app), then open http://localhost:8000/findings")
    print("Remove it:  philab demo --remove")


@contextmanager
def instance(settings: Settings) -> Iterator[str]:
    """The address of the lab's API on a free port of this machine, over this machine's database."""
    port = free_port()
    command_line = [sys.executable, "-m", "uvicorn", "app.api.server:app", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PHILAB_DATA": str(settings.data_dir), "PHILAB_CONFIG": str(settings.config_dir), "PHILAB_WORKER": "true"}
    log = _folder(settings) / "api.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        server = subprocess.Popen([*command_line, "--log-level", "warning"], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, log=log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _remove(database: "Database", settings: Settings, *, people: bool) -> dict[str, int]:
    """Deletes the rows tagged `demo` and the runs on disk; with `people`, the contributors and their folders too. Says how much."""
    from db.tasks import delete_demo

    with database.session() as session:
        counts = delete_demo(session, people=people)
    for name in NAMES:
        shutil.rmtree(_folder(settings) / name if people else _folder(settings) / name / "runs", ignore_errors=True)
    return counts


def _contributors(database: "Database", settings: Settings, url: str) -> list[ContributorHome]:
    """The folders of five contributors, of an earlier demo or newly registered; what an earlier demo found is deleted."""
    homes = [ContributorHome(_folder(settings) / name) for name in NAMES]
    known = all(_still_known(url, home) for home in homes)
    _remove(database, settings, people=not known)
    if not known:
        for home, name in zip(homes, NAMES, strict=True):
            _register(url, home, name)
        _tag(database, homes)
    print(f"2. {len(homes)} contributors {'are there from an earlier demo' if known else 'have registered over HTTP'}: {', '.join(NAMES)}.")
    return homes


def _still_known(url: str, home: ContributorHome) -> bool:
    identity = home.identity()
    if identity is None:
        return False
    try:
        Community(url, identity.api_key).get("/results", contributor_id="me", limit=1)
    except NotAllowed:
        return False
    return True


def _folder(settings: Settings) -> Path:
    return settings.data_dir / "demo"


def _owner_key(database: "Database", settings: Settings) -> str:
    from db.contributors import ensure_owner

    with database.session() as session:
        ensure_owner(session, settings)
    return (settings.config_dir / "owner-key").read_text(encoding="utf-8").strip()


def _register(url: str, home: ContributorHome, name: str) -> None:
    """A contributor as `philab contribute register` makes one, with a folder of its own."""
    answer = Community(url).post("/register", {"username": name, "email": f"{name}@example.org"})
    home.save(Identity(url=url, username=name, contributor_id=answer["contributor_id"], api_key=answer["api_key"]))


def _tag(database: "Database", homes: Sequence[ContributorHome]) -> None:
    """Marks the contributors, so that --remove finds them."""
    from uuid import UUID

    from db.schema import Contributor
    from db.tasks import DEMO_TAG

    with database.session() as session:
        for home in homes:
            identity = home.identity()
            assert identity is not None, "just registered"
            session.get_one(Contributor, UUID(identity.contributor_id)).tags = [DEMO_TAG]


def _create_task(owner: Community) -> dict[str, Any]:
    named = read_spec(SPEC)
    spec = named.spec.with_rows(Rows(start=0, stop=SHARDS * SHARD_SIZE))
    return owner.post(
        "/tasks",
        {
            "name": "Demo: which heads carry induction?",
            "description": named.description,
            "hypothesis": "Only L0H1 (previous token) and L1H2 (induction) matter; every other head can be taken away without loss.",
            "spec_yaml": spec_to_yaml(spec),
            "n_shards": SHARDS,
            "shard_size": SHARD_SIZE,
            "replicas": REPLICAS,
            "delta": DELTA,
            "tags": ["demo"],
        },
    )


def _contribute(url: str, homes: Sequence[ContributorHome], task_id: str) -> None:
    """The contributors take turns until there is no shard left for any of them."""
    idle, turn = 0, 0
    while idle < len(homes):
        home = homes[turn % len(homes)]
        identity = home.identity()
        assert identity is not None, "just registered"
        sent = contribute_shard(Community(url, identity.api_key), home, task_id=task_id, quiet=True)
        idle = 0 if sent else idle + 1
        turn += 1
        if sent:
            print(f"   {_line(identity.username, sent)}")


def _line(name: str, sent: Contribution) -> str:
    rows, effects = sent.shard.spec.dataset.rows, sent.done.answer.effects
    assert rows is not None, "a shard names its rows"
    top = max(range(len(effects.sites)), key=lambda index: abs(effects.estimate[index]))
    return (
        f"{name:<12} prompts {rows.start:>3} to {rows.stop - 1:<3}  {sent.done.provenance.duration_s or 0:4.1f} s   "
        f"largest effect {effects.sites[top].label} {effects.estimate[top]:+.2f} {effects.unit}   {sent.answer.body['status']}"
    )


def _settled(owner: Community, task_id: str) -> list[dict[str, Any]]:
    """The findings once every shard has its verdict.

    Raises:
        CommunityUnreachable: they did not come.
    """
    give_up = time.monotonic() + SETTLE_S
    while time.monotonic() < give_up:
        findings = listed(owner.get("/findings", task_id=task_id, limit=500))
        if findings and all(finding["status"] != "unverified" for finding in findings):
            return findings
        time.sleep(0.2)
    raise CommunityUnreachable(f"the findings were not there after {SETTLE_S:.0f} s.", next_step="See: philab app, page Findings.")


def _show(findings: Sequence[dict[str, Any]]) -> None:
    """The finding as a table, largest effect first, and why it is not one step higher."""
    ordered = sorted(findings, key=lambda finding: -abs(finding["estimate"]))
    rows = [
        [
            finding["site_label"],
            f"{finding['estimate']:+.4f}",
            f"{finding['ci_low']:+.4f} .. {finding['ci_high']:+.4f}",
            f"{finding['confidence']:.3f}",
            f"{finding['k_shards']}/{finding['n_contributors']}/{finding['n_classes']}",
            finding["status"],
        ]
        for finding in ordered
    ]
    unit = ordered[0]["unit"]
    print(table(["head", f"effect ({unit})", "95 % interval", "confidence", "shards/people/machines", "status"], rows))
    reasons = {finding["status"]: finding["status_reason"] for finding in ordered}
    print()
    for status, reason in reasons.items():
        print(f"{status}, and not one step higher: {reason}.")


def _plot(findings: Sequence[dict[str, Any]]) -> list[Path]:
    """A forest plot as PNG and SVG, with its data as CSV."""
    import altair as alt

    ordered = sorted(findings, key=lambda finding: -finding["estimate"])
    rows = [
        {"head": finding["site_label"], "effect": finding["estimate"], "low": finding["ci_low"], "high": finding["ci_high"]}
        for finding in ordered
    ]
    axis = alt.X("low:Q", title=f"change of the loss when the head is taken away, in {ordered[0]['unit']} (more is worse)")
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("head:N", sort=[row["head"] for row in rows], title="head"))
    interval = base.mark_rule(strokeWidth=3, color="#1d4ed8").encode(x=axis, x2="high:Q")
    point = base.mark_point(filled=True, opacity=1, size=70, color="#0f172a").encode(x="effect:Q")
    chart = (interval + point).properties(
        width=560,
        height=220,
        title=f"What the planted model loses without each head: {SHARDS} shards, {len(NAMES)} contributors, 95 % intervals",
    )
    OUT.mkdir(parents=True, exist_ok=True)
    chart.save(OUT / "finding.png", ppi=150)
    chart.save(OUT / "finding.svg")
    lines = ["head,effect,low,high", *(f"{row['head']},{row['effect']},{row['low']},{row['high']}" for row in rows)]
    (OUT / "finding.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [OUT / f"finding.{kind}" for kind in ("png", "svg", "csv")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="philab demo", description="The whole chain on this machine, on a model whose right answer is known."
    )
    parser.add_argument("--remove", action="store_true", help="delete what the demo made")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
