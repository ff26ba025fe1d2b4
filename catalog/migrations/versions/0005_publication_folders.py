"""Merges may be published into a folder of a repository that holds many."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("publications", sa.Column("folder", sa.Text(), nullable=False, server_default=""))
