"""Brings the schema up to date, one process at a time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from engine.errors import DatabaseUnavailable

ADVISORY_LOCK = 0x7068696C6162  # "philab"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Runs the migrations that are missing. Several processes may call it at once.

    Raises:
        DatabaseUnavailable: the schema is newer than this philab.
    """
    _migrate(engine, revision, down=False)


def downgrade(engine: Engine, revision: str) -> None:
    """Takes migrations back, with their data."""
    _migrate(engine, revision, down=True)


def current(engine: Engine) -> str | None:
    """The revision that the database is at; None when it is empty."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _migrate(engine: Engine, revision: str, *, down: bool) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        now = MigrationContext.configure(connection).get_current_revision()
        if now is not None and now not in known:
            raise DatabaseUnavailable(f"the database is at revision '{now}', which this philab does not know.", next_step="Update philab.")
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)
