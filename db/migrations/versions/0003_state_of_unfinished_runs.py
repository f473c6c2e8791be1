"""What an unfinished run has measured: the hash of its state in the store."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("state_sha256", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_runs_state_sha256"), "runs", ["state_sha256"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_runs_state_sha256"), table_name="runs")
    op.drop_column("runs", "state_sha256")
