"""The best merges of a subject or a style are found among its own rankings."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for side in ("subject", "style"):
        op.create_index(f"rankings_by_{side}", "rankings", [side, "subject_scorer", "style_scorer"])
