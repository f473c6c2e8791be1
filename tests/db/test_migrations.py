import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from procrastinate.schema import SchemaManager
from sqlalchemy import inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db import migrate
from db.connection import Database
from db.schema import Table
from db.viewer import Viewer
from engine.errors import DatabaseUnavailable
from tests import community

ROOT = Path(__file__).resolve().parents[2]

MANIFESTS = (
    "run_id timestamp git_hash git_diff command python_version pip_freeze device_info dataset_id params_json "
    "final_metrics_json artifacts_json wandb_url note"
)
RESULTS = (
    "id task_id contributor_id submitted_at preset_used hardware_info duration_seconds result_summary result_full telemetry_data "
    "spec_hash is_valid validation_notes"
)


@pytest.fixture
def empty(new_database: Callable[..., URL]):
    database = Database(new_database())
    yield database
    database.close()


def test_the_migrations_make_exactly_the_tables_of_the_schema(database: Database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": _ours})
        assert compare_metadata(context, Table.metadata) == []


def _ours(thing: object, name: str | None, type_: str, reflected: bool, compare_to: object) -> bool:
    return not (type_ == "table" and str(name).startswith(("procrastinate_", "alembic_")))


CATALOGUE = {
    "columns": "select table_name, column_name, data_type, is_nullable, column_default, character_maximum_length, is_identity "
    "from information_schema.columns where table_schema = 'public' and table_name not in ('manifests', 'results', 'alembic_version')",
    "constraints": "select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint "
    "where connamespace = 'public'::regnamespace and conrelid::regclass::text <> 'alembic_version'",
    "indexes": "select indexdef from pg_indexes where schemaname = 'public' and tablename <> 'alembic_version'",
    "unlogged": "select relname from pg_class where relpersistence = 'u' and relkind = 'r'",
}


@pytest.mark.parametrize("what", CATALOGUE)
def test_the_migrations_make_what_the_schema_itself_would_make(what: str, database: Database, empty: Database):
    """Autogenerate does not look at checks, partial indexes and defaults; the catalogue of Postgres has them all."""
    Table.metadata.create_all(empty.engine)
    found = []
    for one in (database, empty):
        with one.engine.connect() as connection:
            found.append(sorted(map(str, connection.execute(text(CATALOGUE[what])))))
    assert found[0] == found[1]
    assert found[0]


def test_up_down_up(empty: Database):
    migrate.upgrade(empty.engine)
    head = migrate.current(empty.engine)
    migrate.downgrade(empty.engine, "base")
    assert migrate.current(empty.engine) is None
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]
    assert "jobs" not in inspect(empty.engine).get_schema_names()
    migrate.upgrade(empty.engine)
    assert migrate.current(empty.engine) == head


def test_three_processes_upgrade_at_once(empty: Database):
    code = (
        "import sys; from db.connection import *; from sqlalchemy.engine import make_url; upgrade(Database(make_url(sys.argv[1])).engine)"
    )
    url = empty.url.render_as_string(hide_password=False)
    running = [subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
    assert migrate.current(empty.engine) is not None


def test_a_schema_from_the_future_is_refused(own_database: Database):
    with own_database.engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match=r"'9999', which this philab does not know\. Update philab"):
        migrate.upgrade(own_database.engine)


@pytest.mark.parametrize(("view", "columns"), [("manifests", MANIFESTS), ("results", RESULTS)])
def test_the_views_have_the_columns_of_earlier_systems(database: Database, view: str, columns: str):
    assert [column["name"] for column in inspect(database.engine).get_columns(view)] == columns.split()


def test_the_view_results_tells_of_a_submission(session: Session):
    ada, grace = community.join(session, "ada"), community.join(session, "grace")
    task = community.make_task(session, Viewer(contributor_id=grace.contributor_id, role="admin"))
    sent = community.answer_for(community.lease_shard(session, ada, task.id), telemetry={"schema_version": 1})
    community.send(session, ada, sent)
    row = session.execute(text("select * from results")).one()
    assert (row.contributor_id, row.spec_hash, row.is_valid) == (ada.contributor_id, task.spec_hash, False)
    assert row.result_full == sent.result_full.model_dump(mode="json")
    assert row.telemetry_data == sent.telemetry_data
    assert row.hardware_info["device"] == "cpu"


def test_the_audit_is_append_only(session: Session):
    insert = "insert into audit (action, subject, prev_hash, hash) values ('made', 'run:1', '0', '1')"
    for statement in ("update audit set action = 'x'", "delete from audit", "truncate audit"):
        session.execute(text(insert))
        with pytest.raises(DBAPIError, match="audit is append-only"):
            session.execute(text(statement))
        session.rollback()


def test_the_queue_is_that_of_the_installed_procrastinate():
    """Fails when Procrastinate brings a new schema: then a migration is needed, made from its own `sql/migrations`."""
    assert (ROOT / "db/migrations/procrastinate_3_10.sql").read_text(encoding="utf-8") == SchemaManager.get_schema()
