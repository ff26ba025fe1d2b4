"""A catalogue and a store as a night leaves them: drawn pictures instead of merged ones, and names of every malice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import Engine, insert

from catalog import facts, record, schema
from ziplora.tinyworld.figures import SUBJECTS
from ziplora.tinyworld.world import NEW_STYLES, Scene, render

from .samples import DIVERGED, NIGHT, NOON, minutes

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "{{ 7 * 7 }} {% raw %}",
    "=HYPERLINK(1)'; DROP TABLE merges; --",
    "safe\u202egnp.exe\u0000",
    "javascript:alert(1)",
    "x" * 300,
)


@dataclass(frozen=True)
class World:
    """Where the pictures lie."""

    store: Path
    singles: dict[str, Path]
    base: Path


def _draw(folder: Path, scenes: Sequence[tuple[str, int, Scene]], side: int, blend: float = 0.0) -> None:
    """Previews in the layout of the store; `blend` fades them, like a merge that lost something."""
    folder.mkdir(parents=True)
    pictures = []
    for number, (prompt, seed, scene) in enumerate(scenes):
        shown = (1 - blend) * render(scene) + blend * 0.7
        picture = Image.fromarray((shown * 255).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        picture.save(folder / f"{number:04}.png")
        pictures.append({"file": f"{number:04}.png", "prompt": prompt, "seed": seed})
    (folder / "previews.json").write_text(json.dumps({"sheet": "sheet.png", "pictures": pictures}))


def _scene(figure: str, style: str, seed: int, background: str = "white") -> Scene:
    generator = np.random.default_rng(seed)
    x, y, angle = generator.uniform(-0.15, 0.15, 3)
    colour = None if figure in SUBJECTS else "red"
    return Scene(figure, colour, background, style, float(x), float(y), 0.6, float(angle))


def _adapter(engine: Engine, repository: str, role: facts.Role, licence: str | None) -> str:
    sha256 = facts.key(repository)
    prompt = f"a sks {repository}" if role == "subject" else f"flowers in {repository} style"
    known = facts.Adapter(sha256, role, "usable", licence, {"prompt": prompt, "rank": 8}, NOON)
    alias = facts.Alias(
        f"tiny/{repository}-lora", "c0ffee" * 6 + "c0ff", "pytorch_lora_weights.safetensors", sha256, NOON
    )
    record.record_adapters(engine, [known], [alias])
    return sha256


def _score(engine: Engine, merge_id: str, generator: np.random.Generator, quality: float) -> None:
    rows = []
    for metric, floor, ceiling in (("dino", 0.31, 0.86), ("clip-i", 0.44, 0.79), ("clip-t", 0.18, 0.27)):
        for seed in (0, 1):
            position = float(np.clip(quality + generator.normal(0, 0.15), -0.2, 1.1))
            value = floor + position * (ceiling - floor)
            scorer = f"{metric}:tiny@0a1b2c3d:pre-77"
            rows.append(facts.Score(merge_id, scorer, "both", seed, value, floor, ceiling, NOON))
    record.record_scores(engine, rows)


def _merge(engine: Engine, world: World, pair: tuple[str, str], names: tuple[str, str], method: str, side: int) -> None:
    merge_id = facts.key(*pair, method)
    generator = np.random.default_rng(int(merge_id[:8], 16))
    recipe = {
        "method": method,
        "seed": 0,
        "subject_sha256": pair[0],
        "style_sha256": pair[1],
        "parameters": {"steps": 100},
    }
    merged = facts.Merge(merge_id, *pair, method, recipe)
    if merge_id.startswith(("0", "1")):
        record.record_failed(engine, merged, DIVERGED, NIGHT, minutes(5))
        return
    losses = {} if method == "direct" else _losses(generator)
    result = facts.Result(
        NIGHT, losses, float(generator.uniform(0.05, 0.6)), float(generator.uniform(0.2, 14)), minutes(3)
    )
    record.record_done(engine, merged, result)
    prompt = f"a sks {names[0]} in {names[1]} style"
    quality = float(generator.uniform(0.15, 0.95))
    scenes = [(prompt, seed, _scene(*names, seed)) for seed in range(4)]
    _draw(world.store / "merges" / merge_id / "previews", scenes, side, blend=0.6 * (1 - quality))
    if not merge_id.startswith("2"):
        _score(engine, merge_id, generator, quality)


def _losses(generator: np.random.Generator) -> dict[str, Any]:
    """What an optimiser says that goes down, in a UNet of four blocks."""
    steps = range(0, 100, 10)
    curve = [[step, *(scale * float(np.exp(-step / 30)) + 0.1 for scale in (2.5, 1.5, 40))] for step in steps]
    blocks = ("down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1")
    moved = {block: generator.uniform(0.01, 0.4, 2).tolist() for block in blocks}
    ends = {"first_subject": 2.6, "last_subject": 0.2, "first_style": 1.6, "last_style": 0.15}
    return {"curve": curve, "movement_by_block": moved, **ends}


def fill(
    engine: Engine, folder: Path, *, subjects: int = 8, styles: int = 8, side: int = 64, hostile: bool = True
) -> World:
    """A night with so many subjects and styles, two methods, refused files and failed merges."""
    world = World(folder / "store", {}, folder / "store/singles/base")
    for number in range(12):
        night = NIGHT if number == 0 else f"earlier-{number}"
        record.record_night_started(engine, night, {}, NOON - timedelta(days=number))
        record.record_night_finished(engine, night, {}, NOON - timedelta(days=number, minutes=-20))
    names = {"subject": list(SUBJECTS)[:subjects], "style": list(NEW_STYLES)[:styles]}
    licences = ("apache-2.0", "openrail++", "cc-by-4.0", "mit")
    adapters: dict[str, str] = {}
    for role in ("subject", "style"):
        for number, name in enumerate(names[role]):
            shown = HOSTILE[number] if hostile and role == "style" and number < 2 else name
            adapters[name] = _adapter(engine, shown, role, licences[number % 4])
            pictured = (name, "flat") if role == "subject" else ("star", name)
            scenes = [(f"a sks {shown}", seed, _scene(*pictured, seed, "mint")) for seed in range(4)]
            world.singles[adapters[name]] = folder / "store/singles" / name
            _draw(world.singles[adapters[name]], scenes, side)
    prompts = [
        (f"a sks {one} in {other} style", seed)
        for one in names["subject"]
        for other in names["style"]
        for seed in (0, 1)
    ]
    _draw(world.base, [(prompt, seed, _scene("circle", "flat", seed)) for prompt, seed in prompts], side)
    for one in names["subject"]:
        for other in names["style"]:
            if (one, other) != (names["subject"][-1], names["style"][-1]):
                for method in ("direct", "ziplora"):
                    _merge(engine, world, (adapters[one], adapters[other]), (one, other), method, side)
    _refuse(engine)
    return world


def fill_many(engine: Engine, folder: Path, *, subjects: int, styles: int) -> World:
    """Every subject in every style by two methods, each merge with one score and a picture of its own colour."""
    world = World(folder / "store", {}, folder / "store/singles/base")
    record.record_night_started(engine, NIGHT, {}, NOON)
    all_subjects = [_adapter(engine, f"subject-{number:03}", "subject", "mit") for number in range(subjects)]
    all_styles = [_adapter(engine, f"style-{number:03}", "style", "mit") for number in range(styles)]
    merges, scores = [], []
    for number, (subject, style) in enumerate(product(all_subjects, all_styles)):
        for method in ("direct", "ziplora"):
            merge_id = facts.key(subject, style, method)
            row: dict[str, Any] = {
                "merge_id": merge_id,
                "subject": subject,
                "style": style,
                "method": method,
                "recipe": {},
            }
            merges.append({**row, "status": "done", "attempts": 0, "night_id": NIGHT, "seconds": 1.0})
            previews = world.store / "merges" / merge_id / "previews"
            previews.mkdir(parents=True)
            colour = (number % 256, number // 256, 0 if method == "direct" else 200)
            Image.new("RGB", (64, 64), colour).save(previews / "0000.png")
            named = {"file": "0000.png", "prompt": "both", "seed": 0}
            (previews / "previews.json").write_text(json.dumps({"pictures": [named]}))
            for scorer in ("dino:tiny@0a1b2c3d:pre-77", "clip-i:tiny@0a1b2c3d:pre-77"):
                position = int(facts.key(merge_id, scorer)[:4], 16) / 0xFFFF
                scores.append(facts.Score(merge_id, scorer, "both", 0, position, 0.0, 1.0, NOON))
    with engine.begin() as connection:
        connection.execute(insert(schema.Merge), merges)
    record.record_scores(engine, scores)
    return world


def _refuse(engine: Engine) -> None:
    refused = (
        ("NON_FINITE", "12 values of up_blocks.0.attentions.0.to_q are NaN.", "ask the author for a sound file."),
        ("BASE_MISMATCH", "The card says SDXL, cross-attention is 768 wide (SD 1.5).", "use an SDXL LoRA."),
        ("PICKLE_REFUSED", "It holds its weights as a pickle; it was not opened.", "ask the author for safetensors."),
        ("LICENCE_NO_DERIVATIVES", "cc-by-nd-4.0 forbids to pass on anything made from it.", "leave it out."),
    )
    for number, (code, fact, step) in enumerate(refused):
        reason = facts.Reason(code, fact, step)
        record.record_refusals(
            engine, [facts.Refusal(NIGHT, f"tiny/fault-{number}", "local", "a.safetensors", reason, NOON)]
        )
    for name in HOSTILE:
        reason = facts.Reason("NON_FINITE", f"In {name} 3 values are NaN.", name)
        record.record_refusals(engine, [facts.Refusal(NIGHT, name, "local", "a.safetensors", reason, NOON)])
