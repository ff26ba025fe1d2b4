"""The card of a catalogue's data set, with questions that DuckDB answers as they stand."""

import yaml

from catalog.merge_card import escaped

TABLES = {
    "merges": "one row a merge: its adapters, method, recipe, licence and score, and where it is published",
    "adapters": "one row an adapter: its role and licence, and where it is on the Hub",
    "scores": "one row a picture and scorer: value, floor (the base alone), ceiling (one LoRA alone), position between",
}
"""The tables of a data set, and what they hold."""


def dataset_card(repository: str) -> str:
    """README.md of a data set of this name."""
    front = {
        "pretty_name": "Subject and style LoRAs, merged",
        "tags": ["lora", "diffusers", "ziplora"],
        "configs": [{"config_name": name, "data_files": f"{name}.parquet"} for name in TABLES],
    }
    tables = "".join(f"| `{name}.parquet` | {holds} |\n" for name, holds in TABLES.items())
    place = f"hf://datasets/{repository}"
    return f"""---
{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---

# {escaped(repository)}

Merges of subject LoRAs with style LoRAs that are published on the Hub, or may be. The score of a merge is the harmonic
mean of its subject and style position: 0 is the base model alone, 1 each LoRA alone.

| file | holds |
|---|---|
{tables}
Each merge carries a licence of its own, the strictest that its parents ask for.

## Ask it

With DuckDB, no download needed. The best merges:

```sql
SELECT subject_name, style_name, method, score_01, licence, repository
FROM '{place}/merges.parquet' ORDER BY score_01 DESC LIMIT 20;
```

For each style the subject that takes to it best:

```sql
SELECT style_name, arg_max(subject_name, score_01) AS subject_name, max(score_01) AS score_01
FROM '{place}/merges.parquet' GROUP BY style_name ORDER BY score_01 DESC;
```

What was made of an adapter, and where that is published:

```sql
SELECT name, role, method, score_01, merges.repository, merges.commit
FROM '{place}/adapters.parquet' AS adapters
JOIN '{place}/merges.parquet' AS merges ON adapters.sha256 IN (merges.subject, merges.style)
ORDER BY name, score_01 DESC;
```

How far each merge is from both its parents, picture by picture:

```sql
SELECT subject_name, style_name, prompt, seed, scorer_id, position
FROM '{place}/scores.parquet' JOIN '{place}/merges.parquet' USING (merge_id)
WHERE position IS NOT NULL ORDER BY merge_id, prompt, seed, scorer_id;
```
"""
