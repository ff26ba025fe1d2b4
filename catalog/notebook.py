"""A notebook over a snapshot, for people who explore: `ziplora notebook`, or marimo itself with a copy of this file.

It needs marimo: `pip install "ziplora[notebook]"`.
"""

import marimo

app = marimo.App(width="medium", app_title="ziplora")

with app.setup:
    from collections.abc import Mapping, Sequence
    from html import escape
    from pathlib import Path
    from typing import Any

    import duckdb
    import marimo as mo

    from catalog.gallery_pictures import Shot, shots_in

    BINS = 20
    SHOWN = "subject, style, method, score_01, subject_position, style_position, text_position, licence, rank, merge_id"
    Row = dict[str, Any]


@app.function
def ask(snapshot: duckdb.DuckDBPyConnection, sql: str, *parameters: object) -> list[Row]:
    """The rows of an answer."""
    answer = snapshot.execute(sql, parameters)
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


@app.function
def histogram(method: str, counts: Mapping[int, int]) -> str:
    """How many merges of a method have which score, as a drawing: 0 is the base alone, 1 as both LoRAs."""
    most = max(counts.values())
    bars = "".join(
        f'<rect x="{10 * place + 1}" y="{100 - 100 * count / most:.1f}" width="8" height="{100 * count / most:.1f}">'
        f"<title>{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {count:,}</title></rect>"
        for place, count in counts.items()
    )
    merges = f"{sum(counts.values()):,} merges, at most {most:,} in a bar"
    return (
        f'<figure style="margin:0"><figcaption><b>{escape(method)}</b> <small>{merges}</small></figcaption>'
        f'<svg viewBox="0 0 {10 * BINS} 112" width="300" fill="currentColor" role="img">{bars}'
        f'<text y="111" font-size="9">0</text><text x="{10 * BINS - 6}" y="111" font-size="9">1</text></svg></figure>'
    )


@app.function
def strip(shots: Sequence[Shot]) -> Any:
    """Pictures beside each other, each over its prompt and seed."""
    return mo.hstack(
        [mo.image(shot.source, width=180, caption=escape(f"{shot.prompt} · {shot.seed}")) for shot in shots],
        justify="start",
        wrap=True,
    )


@app.cell
def _() -> tuple[Any, ...]:
    snapshot = duckdb.connect(str(mo.cli_args().get("snapshot") or "catalog.duckdb"), read_only=True)
    (counted,) = ask(snapshot, "SELECT count(*) AS merges, max(finished_at) AS latest FROM picks")
    mo.md(
        f"# {counted['merges']:,} ranked merges\n\nThe latest was finished at {counted['latest'] or 'no time yet'} UTC."
    )
    return (snapshot,)


@app.cell
def _(snapshot: Any) -> tuple[Any, ...]:
    def choice(column: str) -> Any:
        known = ask(snapshot, f"SELECT DISTINCT {column} AS name FROM picks ORDER BY name")
        return mo.ui.dropdown([row["name"] for row in known], label=column, searchable=True, allow_select_none=True)

    subject, style, method = choice("subject"), choice("style"), choice("method")
    mo.hstack([subject, style, method], justify="start", gap=2)
    return method, style, subject


@app.cell
def _(method: Any, snapshot: Any, style: Any, subject: Any) -> tuple[Any, ...]:
    chosen = {"subject": subject.value, "style": style.value, "method": method.value}
    wanted = {column: name for column, name in chosen.items() if name is not None}
    where = " AND ".join(["true", *(f"{column} = ?" for column in wanted)])
    best = ask(
        snapshot,
        f"SELECT {SHOWN} FROM picks WHERE {where} ORDER BY score_01 DESC, merge_id LIMIT 1000",
        *wanted.values(),
    )
    ranking = mo.ui.table(
        best,
        selection="single",
        initial_selection=[0] if best else None,
        page_size=10,
        format_mapping={column: "{:.2f}" for column in best[0] if column.endswith(("_01", "_position"))}
        if best
        else None,
        label="1,000 at most; choose one to see its pair",
    )
    mo.vstack([mo.md("## The best"), ranking])
    return ranking, wanted, where


@app.cell
def _(snapshot: Any, wanted: Any, where: Any) -> None:
    bins = ask(
        snapshot,
        f"SELECT method, least(floor(score_01 * {BINS}), {BINS - 1})::INTEGER AS place, count(*) AS merges "
        f"FROM picks WHERE {where} GROUP BY ALL ORDER BY ALL",
        *wanted.values(),
    )
    methods = dict.fromkeys(row["method"] for row in bins)
    drawn = [
        mo.Html(histogram(one, {row["place"]: row["merges"] for row in bins if row["method"] == one}))
        for one in methods
    ]
    mo.vstack([mo.md("## Scores by method"), mo.hstack(drawn, justify="start", wrap=True, gap=2)])


@app.cell
def _(ranking: Any, snapshot: Any) -> None:
    mo.stop(not ranking.value, mo.md("No merge is chosen."))
    (picked,) = ranking.value
    last = ask(
        snapshot,
        "SELECT CASE WHEN contains(settings ->> 'store', '://') THEN settings ->> 'store_cache' "
        "ELSE settings ->> 'store' END AS store FROM nights ORDER BY started_at DESC LIMIT 1",
    )
    merges = Path(last[0]["store"] or "store") / "merges"
    pair = ask(
        snapshot,
        "FROM picks WHERE subject = ? AND style = ? ORDER BY score_01 DESC, merge_id",
        picked["subject"],
        picked["style"],
    )
    title = f"<p><b>{escape(picked['subject'])} × {escape(picked['style'])}</b></p>"
    parts: list[Any] = [mo.md("## The pair"), mo.Html(title)]
    for row in pair:
        scores = ", ".join(
            f"{name} {row[f'{name}_position']:.2f}" for name in ("subject", "style", "text") if row[f"{name}_position"]
        )
        told = f"<b>{escape(row['method'])}</b> {row['score_01']:.2f} ({scores}) <code>{row['merge_id'][:12]}</code>"
        parts += [mo.Html(f"<p>{told}</p>"), strip(shots_in(merges / row["merge_id"] / "previews"))]
    mo.vstack(parts)


if __name__ == "__main__":
    app.run()
