"""What a merge took with its pictures and scores."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("merges", sa.Column("pair_seconds", sa.Double(), nullable=True))
