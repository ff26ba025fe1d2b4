"""What the scores of a merge come to, by scorer and by pair of scorers, so that no question has to add them up."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

SUMMARISE = """
INSERT INTO summaries (merge_id, scorer_id, pictures, value, floor, ceiling, position, reason, scored_at)
SELECT merge_id, scorer_id, count(*), avg(value), avg(floor), avg(ceiling),
    CASE WHEN count(position) = count(*) THEN avg(position) END, max(reason), max(scored_at)
FROM scores GROUP BY merge_id, scorer_id
"""

RANK = """
INSERT INTO rankings (merge_id, subject_scorer, style_scorer, subject, style, method, subject_position, style_position,
    score_01)
SELECT placed.merge_id, subject_scorer, style_scorer, merges.subject, merges.style, merges.method, subject_position,
    style_position, CASE WHEN near_subject = 0 OR near_style = 0 THEN 0
        ELSE 2 * near_subject * near_style / (near_subject + near_style) END
FROM (
    SELECT subjects.merge_id, subjects.scorer_id AS subject_scorer, styles.scorer_id AS style_scorer,
        subjects.position AS subject_position, styles.position AS style_position,
        CASE WHEN subjects.position < 0 THEN 0 WHEN subjects.position > 1 THEN 1 ELSE subjects.position END
            AS near_subject,
        CASE WHEN styles.position < 0 THEN 0 WHEN styles.position > 1 THEN 1 ELSE styles.position END
            AS near_style
    FROM summaries AS subjects JOIN summaries AS styles ON styles.merge_id = subjects.merge_id
    WHERE (subjects.scorer_id = 'dino' OR substr(subjects.scorer_id, 1, 5) = 'dino:')
        AND (styles.scorer_id = 'clip-i' OR substr(styles.scorer_id, 1, 7) = 'clip-i:')
        AND subjects.position IS NOT NULL AND styles.position IS NOT NULL
) AS placed JOIN merges ON merges.merge_id = placed.merge_id
"""


def _merge_id() -> sa.Column[str]:
    return sa.Column("merge_id", sa.String(64), sa.ForeignKey("merges.merge_id"), primary_key=True)


def upgrade() -> None:
    op.create_table(
        "summaries",
        _merge_id(),
        sa.Column("scorer_id", sa.Text(), primary_key=True),
        sa.Column("pictures", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("floor", sa.Double(), nullable=True),
        sa.Column("ceiling", sa.Double(), nullable=True),
        sa.Column("position", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rankings",
        _merge_id(),
        sa.Column("subject_scorer", sa.Text(), primary_key=True),
        sa.Column("style_scorer", sa.Text(), primary_key=True),
        sa.Column("subject", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("style", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("subject_position", sa.Double(), nullable=False),
        sa.Column("style_position", sa.Double(), nullable=False),
        sa.Column("score_01", sa.Double(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("merges_by_finish", "merges", ["finished_at"])
    op.execute(SUMMARISE)
    op.execute(RANK)
    op.create_index("rankings_by_score", "rankings", ["subject_scorer", "style_scorer", "score_01"])
    if op.get_bind().dialect.name == "sqlite":  # without, it takes the new tables for small ones
        op.execute("PRAGMA analysis_limit=1000")
        op.execute("ANALYZE")
