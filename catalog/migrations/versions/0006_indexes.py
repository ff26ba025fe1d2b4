"""Indexes that hold what is asked of all merges of a subject, and the rankings of each adapter."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.drop_index("merges_by_subject", "merges")
    op.create_index("merges_by_subject", "merges", ["subject", "style", "merge_id", "status"])
    for side in ("subject", "style"):
        op.create_index(f"rankings_by_{side}", "rankings", [side, "subject_scorer", "style_scorer"])
