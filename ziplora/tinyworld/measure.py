"""Measure the tiny world: `python -m ziplora.tinyworld.measure` writes the figures, the tables and the picture sheets.

Every share is of pictures named right by the independent judge, or of trials decided right by an encoder.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection, Dinov2Model

from ziplora.sheet import contact_sheet

from .adapters import PLANS, STYLE_OBJECTS, SUBJECT_BACKGROUNDS, AdapterPlan, instance_caption
from .autoencoder import to_pm1
from .base import draw
from .bundle import FILES, load_base, load_judge
from .dataset import Pictures, render_all, sample_scenes
from .figures import BACKGROUNDS, COLOURS, OBJECTS, SUBJECTS
from .judge import FIGURES, Judge, Verdict, judge_pictures
from .page import page
from .text import token_ids
from .world import NEW_STYLES, STYLES, Scene, caption, sample_scene

Measured = dict[str, Any]
"""Figures by name, ready for JSON."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """How many trials each figure stands on."""

    captions: int
    retrieval_batches: int
    triples: int
    adapter_pictures: int
    pair_pictures: int


FULL = Size(captions=500, retrieval_batches=8, triples=1000, adapter_pictures=32, pair_pictures=12)
SMOKE = Size(captions=48, retrieval_batches=1, triples=8, adapter_pictures=6, pair_pictures=1)


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return round(sum(counted) / len(counted), 4)


def measure_base(pipeline: StableDiffusionXLPipeline, judge: Judge, count: int, seed: int) -> tuple[Measured, Pictures]:
    """How often the base draws what a held-out caption says, by question; and its pictures."""
    scenes = sample_scenes(count, seed, held_out=True)
    pictures = draw(pipeline, [caption(scene) for scene in scenes], seed)
    verdicts = judge_pictures(judge, pictures)
    pairs = list(zip(scenes, verdicts, strict=True))
    right = {
        question: _share(getattr(scene, question) == getattr(verdict, question) for scene, verdict in pairs)
        for question in ("figure", "colour", "background", "style")
    }
    return {"captions": count, "right": right}, pictures


def measure_judge(judge: Judge, count: int, seed: int) -> Measured:
    """How often the judge is right on clean rendered pictures of held-out captions: the ceiling of what it can tell."""
    scenes = sample_scenes(count, seed, held_out=True, figures=FIGURES, styles=tuple(STYLES))
    pairs = list(zip(scenes, judge_pictures(judge, render_all(scenes)), strict=True))
    right = {
        question: _share(getattr(scene, question) == getattr(verdict, question) for scene, verdict in pairs)
        for question in ("figure", "background", "style")
    }
    coloured = [(scene, verdict) for scene, verdict in pairs if scene.colour is not None]
    right["colour"] = _share(scene.colour == verdict.colour for scene, verdict in coloured)
    return {"pictures": count, "right": right}


@torch.inference_mode()
def measure_retrieval(folder: Path, batches: int, seed: int) -> Measured:
    """How often CLIP finds a held-out picture's caption among 64 different ones."""
    clip, tokenizer = CLIPModel.from_pretrained(folder, dtype=torch.float32), CLIPTokenizer.from_pretrained(folder)
    found: list[bool] = []
    for batch in range(batches):
        candidates = sample_scenes(96, seed + batch, held_out=True, figures=FIGURES, styles=tuple(STYLES))
        scenes = list({caption(scene): scene for scene in candidates}.values())[:64]
        ids = token_ids(tokenizer, [caption(scene) for scene in scenes])
        output = clip(input_ids=ids, pixel_values=to_pm1(render_all(scenes), _CPU))
        found += (output.logits_per_image.argmax(dim=1) == torch.arange(64)).tolist()
    return {"pictures": len(found), "captions": 64, "found": _share(found)}


Embed = Callable[[Float[Tensor, "count 3 64 64"]], Float[Tensor, "count width"]]


def _embedders(encoders: Path) -> dict[str, Embed]:
    subject = Dinov2Model.from_pretrained(encoders / "subject", dtype=torch.float32)
    style = CLIPVisionModelWithProjection.from_pretrained(encoders / "style", dtype=torch.float32)
    clip = CLIPModel.from_pretrained(encoders / "clip", dtype=torch.float32)
    return {
        "subject": lambda pixels: subject(pixels).pooler_output,
        "style": lambda pixels: style(pixels).image_embeds,
        "clip": lambda pixels: clip.get_image_features(pixels).pooler_output,
    }


@torch.inference_mode()
def measure_triples(embed: Embed, figures: Sequence[str], styles: Sequence[str], count: int, seed: int) -> Measured:
    """How often a picture is nearer to the same figure in another style, or to another figure in the same style."""
    generator = np.random.default_rng(seed)
    triples: list[Scene] = []
    for _ in range(count):
        figure, other_figure = (str(name) for name in generator.choice(figures, 2, replace=False))
        style, other_style = (str(name) for name in generator.choice(styles, 2, replace=False))
        colour = str(generator.choice(list(COLOURS)))
        for drawn, drawn_style in ((figure, style), (figure, other_style), (other_figure, style)):
            chance = sample_scene(generator, (drawn,), (drawn_style,))
            same_colour = colour if drawn == figure and chance.colour is not None else chance.colour
            triples.append(
                Scene(drawn, same_colour, chance.background, drawn_style, chance.x, chance.y, chance.size, chance.angle)
            )
    pixels = to_pm1(render_all(triples), _CPU)
    embeddings = F.normalize(torch.cat([embed(part) for part in torch.split(pixels, 128)]), dim=-1)
    anchor, same_figure, same_style = embeddings.view(count, 3, -1).unbind(1)
    nearer_figure = (anchor * same_figure).sum(1) > (anchor * same_style).sum(1)
    return {"triples": count, "same_figure_nearer": _share(nearer_figure.tolist())}


def load_adapter(pipeline: StableDiffusionXLPipeline, repository: Path) -> str:
    """Load a repository's LoRA with stock diffusers; gives back the name it is known by in the pipeline."""
    weights = next(repository.glob("*.safetensors"))
    name = repository.name.removesuffix("-lora")
    if weights.name == "adapter_model.safetensors":
        # diffusers reads PEFT's keys once they say which model they adapt.
        tensors = {key.replace("base_model.model.", "unet.", 1): tensor for key, tensor in load_file(weights).items()}
        pipeline.load_lora_weights(tensors, adapter_name=name)
    else:
        pipeline.load_lora_weights(repository, weight_name=weights.name, adapter_name=name)
    return name


def _trial_scenes(plan: AdapterPlan, count: int, seed: int) -> list[Scene]:
    """What an adapter is tried on: a subject on backgrounds, a style on objects, that it was not trained on."""
    generator = np.random.default_rng([seed, PLANS.index(plan)])
    backgrounds = [name for name in BACKGROUNDS if name not in SUBJECT_BACKGROUNDS]
    objects = [name for name in OBJECTS if name not in STYLE_OBJECTS]
    if plan.role == "subject":
        return [Scene(plan.name, None, backgrounds[index % len(backgrounds)], "flat") for index in range(count)]
    return [sample_scene(generator, (objects[index % len(objects)],), (plan.name,)) for index in range(count)]


def _recognised(plan: AdapterPlan, verdicts: Sequence[Verdict]) -> list[bool]:
    if plan.role == "subject":
        return [verdict.figure == plan.name for verdict in verdicts]
    return [verdict.style == plan.name for verdict in verdicts]


def measure_adapters(
    pipeline: StableDiffusionXLPipeline, judge: Judge, adapters: Path, count: int, seed: int
) -> tuple[Measured, dict[str, Pictures]]:
    """Each adapter alone, and the base alone on the same prompts and seeds; with the adapters' pictures by name."""
    table: Measured = {}
    pictures: dict[str, Pictures] = {}
    for plan in track(PLANS, "adapters alone"):
        prompts = [instance_caption(plan, scene) for scene in _trial_scenes(plan, count, seed)]
        floor = _recognised(plan, judge_pictures(judge, draw(pipeline, prompts, seed)))
        name = load_adapter(pipeline, adapters / f"{plan.name}-lora")
        pipeline.set_adapters([name])
        pictures[plan.name] = draw(pipeline, prompts, seed)
        pipeline.unload_lora_weights()
        ceiling = _recognised(plan, judge_pictures(judge, pictures[plan.name]))
        table[plan.name] = {
            "role": plan.role,
            "dialect": plan.dialect,
            "rank": plan.rank,
            "pictures": count,
            "base_alone": _share(floor),
            "adapter_alone": _share(ceiling),
        }
    return table, pictures


def joint_prompt(subject: AdapterPlan, style: AdapterPlan, background: str) -> str:
    """The caption that asks for a subject in a style."""
    return instance_caption(subject, Scene(subject.name, None, background, style.name))


def measure_direct(
    pipeline: StableDiffusionXLPipeline, judge: Judge, adapters: Path, count: int, seed: int
) -> tuple[Measured, dict[str, Pictures]]:
    """The sum of two LoRAs, pair by pair, as stock diffusers adds them; with `count` pictures of each pair."""
    subjects = [plan for plan in PLANS if plan.role == "subject"]
    styles = [plan for plan in PLANS if plan.role == "style"]
    for plan in PLANS:
        load_adapter(pipeline, adapters / f"{plan.name}-lora")
    backgrounds = list(BACKGROUNDS)
    table: Measured = {}
    pictures: dict[str, Pictures] = {}
    for subject, style in track([(s, t) for s in subjects for t in styles], "direct merges"):
        pipeline.set_adapters([subject.name, style.name])
        prompts = [joint_prompt(subject, style, backgrounds[index % len(backgrounds)]) for index in range(count)]
        drawn = draw(pipeline, prompts, seed)
        verdicts = judge_pictures(judge, drawn)
        seen_subject, seen_style = _recognised(subject, verdicts), _recognised(style, verdicts)
        pair = f"{subject.name} {style.name}"
        pictures[pair] = drawn
        table[pair] = {
            "pictures": count,
            "subject": _share(seen_subject),
            "style": _share(seen_style),
            "both": _share(a and b for a, b in zip(seen_subject, seen_style, strict=True)),
        }
    pipeline.unload_lora_weights()
    return table, pictures


def world_sheet(seed: int) -> Image.Image:
    """Every style in a row of its own: objects first, then subjects; the last eight rows are new to the base."""
    generator = np.random.default_rng(seed)
    shown = (*list(OBJECTS)[:8], *SUBJECTS)
    scenes = [sample_scene(generator, (figure,), (style,)) for style in STYLES for figure in shown]
    labels = [scene.style if scene.figure == shown[0] else " " for scene in scenes]
    return contact_sheet(render_all(scenes), labels, len(shown), scale=1)


def measure(files: Path, sheets: Path, size: Size, seed: int) -> Measured:
    """All figures of the tiny world in `files`, as far as it is made; picture sheets go to `sheets`."""
    has_adapters = (files / "adapters").is_dir()
    pipeline, judge = load_base(files / "base", _CPU), load_judge(files / "judge", _CPU)
    embedders = _embedders(files / "encoders")
    sheets.mkdir(parents=True, exist_ok=True)
    world_sheet(seed).save(sheets / "world.png")
    base, base_pictures = measure_base(pipeline, judge, size.captions, seed)
    scenes = sample_scenes(size.captions, seed, held_out=True)[:48]
    contact_sheet(base_pictures[:48], [caption(scene) for scene in scenes], 8).save(sheets / "base.png")
    return {
        "seed": seed,
        "judge": measure_judge(judge, size.captions, seed + 1),
        "base": base,
        "clip": measure_retrieval(files / "encoders" / "clip", size.retrieval_batches, seed),
        "triples": {
            f"{encoder} encoder, {kind}": measure_triples(embedders[encoder], figures, styles, size.triples, seed)
            for encoder in embedders
            for kind, figures, styles in (
                ("new subjects in new styles", tuple(SUBJECTS), tuple(NEW_STYLES)),
                ("everything", FIGURES, tuple(STYLES)),
            )
        },
    } | (_measure_adapters_and_pairs(pipeline, judge, files / "adapters", sheets, size, seed) if has_adapters else {})


def _measure_adapters_and_pairs(
    pipeline: StableDiffusionXLPipeline, judge: Judge, folder: Path, sheets: Path, size: Size, seed: int
) -> Measured:
    adapters, alone = measure_adapters(pipeline, judge, folder, size.adapter_pictures, seed)
    cells = [picture for plan in PLANS for picture in alone[plan.name][:6]]
    labels = [f"{plan.name}, {plan.role}" if column == 0 else " " for plan in PLANS for column in range(6)]
    contact_sheet(np.stack(cells), labels, 12).save(sheets / "adapters.png")
    direct, merged = measure_direct(pipeline, judge, folder, size.pair_pictures, seed)
    contact_sheet(np.stack([drawn[0] for drawn in merged.values()]), list(merged), len(NEW_STYLES)).save(
        sheets / "direct.png"
    )
    return {"adapters": adapters, "direct": direct}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the bundled files, write measured.json beside them and the sheets and tables where they are read."""
    parser = argparse.ArgumentParser(prog="python -m ziplora.tinyworld.measure", description=__doc__)
    parser.add_argument("--files", type=Path, default=FILES, help="the trained files (default: the bundled ones)")
    parser.add_argument("--docs", type=Path, default=Path("docs/tinyworld"), help="folder of tables and sheets")
    parser.add_argument("--seed", type=int, default=2_000)
    parser.add_argument("--smoke", action="store_true", help="a handful of trials only: does everything run?")
    options = parser.parse_args(arguments)
    measured = measure(options.files, options.docs, SMOKE if options.smoke else FULL, options.seed)
    (options.files / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (options.docs / "README.md").write_text(page(measured))


if __name__ == "__main__":
    main()
