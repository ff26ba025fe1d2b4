"""The card of a published merge: in the Hub's LoRA gallery form, with its parents, its recipe and its scores."""

import html
import json
import re

import yaml

from catalog.facts import STYLE_METRIC, SUBJECT_METRIC, TEXT_METRIC, ScoreSummary
from catalog.names import one_line
from catalog.release import WEIGHTS, Parent, Release, tag_of

GALLERY_TAGS = ["text-to-image", "diffusers", "lora", "template:sd-lora", "stable-diffusion-xl", "ziplora"]
_HELD_AGAINST = {
    SUBJECT_METRIC: "the subject's pictures",
    STYLE_METRIC: "the style's pictures",
    TEXT_METRIC: "the prompt",
}
_USES = """The licence of at least one parent restricts the uses of what is made from it. **The same restrictions hold
for these files and for whatever is made from them, and have to be passed on**: read them in the licences of the
parents linked above, and in that of the base model.
"""


def merge_card(release: Release, repository: str, folder: str = "") -> str:
    """README.md of a repository that holds this merge alone, or of its folder in a collection."""
    front = yaml.safe_dump(_front_matter(release), allow_unicode=True, width=10_000)
    sections = (
        _heading(release),
        _use(release, load_line(repository, release.merge_id, folder)),
        _scores(release),
        _parents(release),
        _recipe(release),
    )
    return f"---\n{front}---\n\n" + "\n".join(sections) + "\n" + _licence(release)


def _front_matter(release: Release) -> dict[str, object]:
    widget = [
        {"text": one_line(picture.prompt), "output": {"url": path}}
        for path, picture in zip(release.picture_files, release.pictures, strict=True)
    ]
    sources = (parent.repository for parent in (release.subject, release.style) if parent.url)
    front: dict[str, object] = {
        "instance_prompt": one_line(release.prompt),
        "library_name": "diffusers",
        "license": release.licence,
        "tags": [*GALLERY_TAGS, *(f"source:{repository}" for repository in sources)],
        "widget": widget,
    }
    if is_hub_id(release.base_model):
        front |= {"base_model": release.base_model, "base_model_relation": "adapter"}
    return front


def _heading(release: Release) -> str:
    subject, style = escaped(release.subject.name), escaped(release.style.name)
    return f"""# {subject} × {style}

<Gallery />

The subject *{subject}* in the style *{style}*, merged with `{release.method}` from two LoRAs.
Call it up with {code(release.prompt)}.
"""


def load_line(repository: str, merge_id: str, folder: str) -> str:
    """How diffusers loads a merge, whatever is published after it."""
    place = f", subfolder={json.dumps(folder)}" if folder else ""
    revision = json.dumps(tag_of(merge_id))
    return f'pipeline.load_lora_weights({json.dumps(repository)}{place}, weight_name="{WEIGHTS}", revision={revision})'


def _use(release: Release, load: str) -> str:
    return f"""## Use it

```python
{load}
```

`kohya/{release.name}.safetensors` holds the same weights for ComfyUI and kohya's tools;
`coefficients.safetensors` with the two parents makes them again, at any style strength.
"""


def _scores(release: Release) -> str:
    rows = "".join(map(_score_row, release.scores))
    total = (
        ""
        if release.score_01 is None
        else f"\nSubject and style together (harmonic mean): **{release.score_01:.2f}**.\n"
    )
    return f"""## Scores

Means over this merge's previews. The *floor* is the base model alone, the *ceiling* one LoRA alone; the position
between them is what counts, and numbers of other encoders cannot be compared.

| held against | floor | this merge | ceiling | position | pictures | scorer |
|---|---|---|---|---|---|---|
{rows}{total}"""


def _score_row(score: ScoreSummary) -> str:
    numbers = (score.floor, score.value, score.ceiling, score.position)
    shown = " | ".join("–" if number is None else f"{number:.3f}" for number in numbers)
    against = _HELD_AGAINST.get(score.metric, escaped(score.metric))
    return f"| {against} | {shown} | {score.pictures} | {code(score.scorer_id)} |\n"


def _parents(release: Release) -> str:
    rows = "".join(map(_parent_row, (release.subject, release.style)))
    return f"""## Parents

| role | LoRA | file | sha256 | licence | trigger prompt |
|---|---|---|---|---|---|
{rows}
Base model: {code(release.base_model)} at {code(release.base_revision[:40])}.
"""


def _parent_row(parent: Parent) -> str:
    name = escaped(parent.repository)
    link = f"[{name}]({parent.url})" if parent.url else f"{name} (a local folder)"
    licence = escaped(parent.licence or "not given")
    cells = (parent.role, link, code(parent.file_name), f"`{parent.sha256}`", licence, code(parent.prompt))
    return f"| {' | '.join(cells)} |\n"


def _recipe(release: Release) -> str:
    recipe = json.dumps(release.recipe, indent=1, sort_keys=True)  # ASCII, so that nothing in it can look like another
    return f"""## Recipe

Merge `{release.merge_id}`; the same recipe gives the same merge.
`provenance.json` says what it was made from, and by what.

```json
{recipe.replace("`", chr(92) + "u0060")}
```
"""


def _licence(release: Release) -> str:
    parts = "; ".join(
        f"{escaped(parent.name)}: {escaped(parent.licence or 'not given')}"
        for parent in (release.subject, release.style)
    )
    restricted = any("rail" in (parent.licence or "") for parent in (release.subject, release.style))
    return f"""## Licence

`{release.licence}`, the strictest that the parents ask for ({parts}). Keep their notices.
The licence of the base model holds for its use.

{_USES if restricted else ""}"""


def is_hub_id(model: str) -> bool:
    """Whether a model has a page on the Hub to link to."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


def escaped(text: str) -> str:
    """A stranger's text as Markdown that shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:@])", r"\\\1", html.escape(one_line(text), quote=False))


def code(text: str) -> str:
    """The same, as code."""
    entities = "".join(f"&#{ord(one)};" if one in "\\`*_{}[]#|~<>&:@!" else one for one in one_line(text))
    return f"<code>{entities}</code>"
