"""The batches of each night, and how they ended."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("night_id", sa.String(64), sa.ForeignKey("nights.night_id"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("merges", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.Text(), nullable=False),
    )
    op.create_index("batches_by_night", "batches", ["night_id"])
