"""Merges may be published into a folder of a repository that holds many."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("publications", sa.Column("folder", sa.Text(), nullable=False, server_default=""))
