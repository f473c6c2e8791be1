"""The job queue in its own schema, the views `manifests` and `results`, and the trigger that keeps the audit append-only."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Procrastinate's own SQL, kept here as it was when this migration was written: a migration never changes.
QUEUE_SQL = Path(__file__).parents[1] / "procrastinate_3_10.sql"

MANIFESTS = """
create view manifests as
select
    runs.id as run_id,
    coalesce(runs.started_at, runs.created_at) as timestamp,
    runs.provenance ->> 'git_commit' as git_hash,
    null::text as git_diff,
    (select string_agg(word, ' ' order by place)
        from jsonb_array_elements_text(runs.provenance -> 'argv') with ordinality as argv (word, place)) as command,
    runs.provenance -> 'versions' ->> 'python' as python_version,
    (select string_agg(name || '==' || version, chr(10) order by name)
        from jsonb_each_text(runs.provenance -> 'versions') as versions (name, version) where name <> 'python') as pip_freeze,
    runs.provenance -> 'hardware' as device_info,
    coalesce(runs.spec -> 'dataset' ->> 'name', runs.spec -> 'dataset' ->> 'path') as dataset_id,
    runs.spec as params_json,
    coalesce((select jsonb_object_agg(name, value) from (
        select distinct on (name) name, value from run_metrics where run_metrics.run_id = runs.id order by name, step desc
    ) as last), '{}') as final_metrics_json,
    coalesce((select jsonb_object_agg(name, jsonb_build_object('sha256', sha256, 'size_bytes', size_bytes, 'media_type', media_type))
        from artifacts where artifacts.run_id = runs.id), '{}') as artifacts_json,
    null::text as wandb_url,
    runs.note as note
from runs
"""

RESULTS = """
create view results as
select
    submissions.id,
    submissions.task_id,
    submissions.contributor_id,
    submissions.submitted_at,
    submissions.preset_used,
    submissions.hardware as hardware_info,
    submissions.duration_s as duration_seconds,
    summary.body as result_summary,
    coalesce(whole.body, runs.result) as result_full,
    coalesce(telemetry.body, to_jsonb(translate(encode(telemetry.data, 'base64'), chr(10), ''))) as telemetry_data,
    tasks.spec_hash,
    submissions.verdict = 'accepted' as is_valid,
    submissions.validation_notes
from submissions
join runs on runs.id = submissions.run_id
join tasks on tasks.id = submissions.task_id
left join run_payloads as summary on summary.run_id = submissions.run_id and summary.name = 'summary'
left join run_payloads as whole on whole.run_id = submissions.run_id and whole.name = 'full'
left join run_payloads as telemetry on telemetry.run_id = submissions.run_id and telemetry.name = 'telemetry'
"""

APPEND_ONLY = """
create function audit_append_only() returns trigger language plpgsql as $$
begin
    raise exception 'audit is append-only';
end;
$$
"""


def upgrade() -> None:
    _make_queue()
    op.execute(MANIFESTS)
    op.execute(RESULTS)
    op.execute(APPEND_ONLY)
    op.execute(
        "create trigger audit_append_only before update or delete or truncate on audit "
        "for each statement execute function audit_append_only()"
    )


def downgrade() -> None:
    op.execute("drop trigger audit_append_only on audit")
    op.execute("drop function audit_append_only()")
    op.execute("drop view results")
    op.execute("drop view manifests")
    op.execute("drop schema jobs cascade")


def _make_queue() -> None:
    """Runs many statements at once, so it goes past SQLAlchemy to the driver."""
    driver = op.get_bind().connection.driver_connection
    assert driver is not None
    driver.execute("create schema jobs")
    driver.execute("set local search_path to jobs")
    driver.execute(QUEUE_SQL.read_text(encoding="utf-8"))
    driver.execute("set local search_path to default")
