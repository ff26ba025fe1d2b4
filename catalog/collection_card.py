"""The card of a collection: in the Hub's LoRA gallery form, with pictures of the best merges and a table of all."""

from collections.abc import Sequence

import yaml

from catalog.collection import Member
from catalog.merge_card import GALLERY_TAGS, code, escaped, is_hub_id, load_line
from catalog.names import one_line

_PICTURES = 24


def collection_card(members: Sequence[Member], repository: str) -> str:
    """README.md of a repository that holds these merges, the best first."""
    best = sorted(members, key=lambda one: (-one.score_01, one.folder))
    front = yaml.safe_dump(_front_matter(best), allow_unicode=True, width=10_000)
    rows = "".join(_row(one, repository) for one in best)
    return f"""---
{front}---

# {escaped(repository)}

<Gallery />

{len(best)} merges of a subject LoRA with a style LoRA, each in a folder of its own with weights for diffusers and for
kohya and ComfyUI, coefficients, previews, scores, parents, recipe and licence.

## Use one

```python
{load_line(repository, best[0].merge_id, best[0].folder)}
```

## All merges

The score is the harmonic mean of subject and style position: 0 is the base model alone, 1 each LoRA alone.

| merge | method | score | licence | prompt | folder |
|---|---|---|---|---|---|
{rows}"""


def _front_matter(best: Sequence[Member]) -> dict[str, object]:
    shown = [one for one in best if one.picture is not None][:_PICTURES]
    licences, bases = sorted({one.licence for one in best}), sorted({one.base_model for one in best})
    front: dict[str, object] = {
        "library_name": "diffusers",
        "license": licences[0] if len(licences) == 1 else "other",
        "tags": GALLERY_TAGS,
        "widget": [{"text": one_line(one.prompt), "output": {"url": one.picture}} for one in shown],
    }
    if len(licences) > 1:
        front |= {"license_name": "that-of-each-merge", "license_link": "README.md"}
    if all(map(is_hub_id, bases)):
        front |= {"base_model": bases, "base_model_relation": "adapter"}
    return front


def _row(one: Member, repository: str) -> str:
    link = f"[{escaped(one.folder)}](https://huggingface.co/{repository}/tree/main/{one.folder})"
    cells = (f"{escaped(one.subject)} × {escaped(one.style)}", one.method, f"{one.score_01:.2f}", one.licence)
    return f"| {' | '.join(cells)} | {code(one.prompt)} | {link} |\n"
