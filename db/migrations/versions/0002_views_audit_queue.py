"""Views under the names of earlier systems, the append-only audit, and the job queue in a schema of its own"""

from alembic import op
from procrastinate.schema import SchemaManager

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MANIFESTS = """
create view manifests as
select r.id as run_id,
       r.created_at as timestamp,
       r.provenance ->> 'git_commit' as git_hash,
       null::text as git_diff,
       (select string_agg(part, ' ' order by place)
          from jsonb_array_elements_text(coalesce(r.provenance -> 'argv', '[]')) with ordinality as words (part, place)) as command,
       r.provenance #>> '{versions,python}' as python_version,
       r.provenance -> 'versions' as pip_freeze,
       r.provenance -> 'hardware' as device_info,
       coalesce(r.spec #>> '{dataset,name}', r.spec #>> '{dataset,path}') as dataset_id,
       r.spec as params_json,
       jsonb_build_object('clean', r.result #> '{clean,mean}', 'duration_s', r.provenance -> 'duration_s') as final_metrics_json,
       (select coalesce(jsonb_agg(jsonb_build_object('name', a.name, 'sha256', a.sha256, 'size_bytes', a.size_bytes) order by a.name), '[]')
          from artifacts a where a.run_id = r.id) as artifacts_json,
       null::text as wandb_url,
       r.note as note
  from runs r
"""

RESULTS = """
create view results as
select s.id,
       s.task_id,
       s.contributor_id,
       s.submitted_at,
       s.preset_used,
       s.hardware as hardware_info,
       s.duration_s as duration_seconds,
       summary.body as result_summary,
       r.result as result_full,
       telemetry.data as telemetry_data,
       t.spec_hash,
       s.verdict <> 'refused' as is_valid,
       s.validation_notes
  from submissions s
  join tasks t on t.id = s.task_id
  join runs r on r.id = s.run_id
  left join run_payloads summary on summary.run_id = s.run_id and summary.name = 'summary'
  left join run_payloads telemetry on telemetry.run_id = s.run_id and telemetry.name = 'telemetry'
"""

APPEND_ONLY = """
create function audit_append_only() returns trigger language plpgsql as $$
begin
  raise exception 'audit is append-only';
end $$;
create trigger audit_append_only before update or delete or truncate on audit
  for each statement execute function audit_append_only()
"""


def upgrade() -> None:
    op.execute(MANIFESTS)
    op.execute(RESULTS)
    op.execute(APPEND_ONLY)
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute("create schema jobs")
    connection.execute("set local search_path to jobs, public")
    connection.execute(SchemaManager.get_schema())
    connection.execute("set local search_path to default")


def downgrade() -> None:
    op.execute("drop schema jobs cascade")
    op.execute("drop trigger audit_append_only on audit")
    op.execute("drop function audit_append_only")
    op.execute("drop view results")
    op.execute("drop view manifests")
