"""The first tables: nights, adapters, merges and what is known of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "nights",
        sa.Column("night_id", sa.String(64), primary_key=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("summary", sa.JSON(), nullable=True),
    )
    op.create_table(
        "aliases",
        sa.Column("alias_id", sa.String(64), primary_key=True),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("aliases_by_adapter", "aliases", ["sha256"])
    op.create_table(
        "merges",
        sa.Column("merge_id", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("style", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("night_id", sa.String(64), sa.ForeignKey("nights.night_id"), nullable=True),
        sa.Column("losses", sa.JSON(), nullable=True),
        sa.Column("movement", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("fact", sa.Text(), nullable=True),
        sa.Column("next_step", sa.Text(), nullable=True),
    )
    op.create_index("merges_by_status", "merges", ["status"])
    op.create_index("merges_by_style", "merges", ["style", "subject"])
    op.create_index("merges_by_subject", "merges", ["subject", "style"])
    op.create_table(
        "refusals",
        sa.Column("refusal_id", sa.String(64), primary_key=True),
        sa.Column("night_id", sa.String(64), sa.ForeignKey("nights.night_id"), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.Column("next_step", sa.Text(), nullable=False),
        sa.Column("refused_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("refusals_by_night", "refusals", ["night_id"])
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("style", sa.String(64), sa.ForeignKey("adapters.sha256"), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.create_table(
        "failures",
        sa.Column("failure_id", sa.String(64), primary_key=True),
        sa.Column("merge_id", sa.String(64), sa.ForeignKey("merges.merge_id"), nullable=False),
        sa.Column("night_id", sa.String(64), sa.ForeignKey("nights.night_id"), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.Column("next_step", sa.Text(), nullable=False),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("failures_by_merge", "failures", ["merge_id"])
    op.create_index("failures_by_night", "failures", ["night_id"])
    op.create_table(
        "publications",
        sa.Column("publication_id", sa.String(64), primary_key=True),
        sa.Column("merge_id", sa.String(64), sa.ForeignKey("merges.merge_id"), nullable=False),
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("commit", sa.Text(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "scores",
        sa.Column("score_id", sa.String(64), primary_key=True),
        sa.Column("merge_id", sa.String(64), sa.ForeignKey("merges.merge_id"), nullable=False),
        sa.Column("scorer_id", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("floor", sa.Double(), nullable=True),
        sa.Column("ceiling", sa.Double(), nullable=True),
        sa.Column("position", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("scores_by_merge", "scores", ["merge_id", "scorer_id"])
