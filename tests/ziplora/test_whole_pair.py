"""From two adapter files to scores, by plain function calls: no catalogue, no Prefect."""

from pathlib import Path

import pytest
import torch

from ziplora.backbone import Sdxl
from ziplora.export import merge_files
from ziplora.preview import preview_merge, preview_single
from ziplora.recipe import Drawing, PreviewRequest, PreviewResult, Single
from ziplora.score import Evidence, Scorer, ScorerSpec, load_scorer, score_merge
from ziplora.store import Store
from ziplora.tinyworld.encoders import build_clip, build_style_encoder, build_subject_encoder, save_encoders
from ziplora.tinyworld.text import build_tokenizers

from .conftest import BASE_MODEL, BASE_REVISION, JOINT, SIDE, Lora

DRAWING = Drawing(steps=2, side=SIDE)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> list[Scorer]:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    tokenizer = build_tokenizers()[0]
    save_encoders(folder, build_clip(tokenizer), tokenizer, build_subject_encoder(), build_style_encoder())
    return [
        load_scorer(ScorerSpec("clip-t", "tiny/clip", folder / "clip")),
        load_scorer(ScorerSpec("clip-i", "tiny/style", folder / "style")),
        load_scorer(ScorerSpec("dino", "tiny/subject", folder / "subject")),
    ]


def test_from_two_files_to_scores(
    subject: Lora, style: Lora, backbone: Sdxl, scorers: list[Scorer], store: Store, tmp_path: Path
) -> None:
    recipe, result, _ = merge_files(
        subject.path,
        style.path,
        tmp_path / "merged.safetensors",
        backbone,
        BASE_MODEL,
        BASE_REVISION,
        store,
        subject_prompt=subject.prompt,
        style_prompt=style.prompt,
        subject_references=subject.references,
        style_references=style.references,
        joint_prompts=JOINT.prompts,
        method="ziplora",
        parameters={"steps": 5},
        samples=4,
        side=SIDE,
    )
    assert result.losses is not None
    assert (tmp_path / "merged.safetensors").is_file()

    def alone(lora: Lora | None, *prompts: str) -> PreviewResult:
        single = Single(lora.sha256 if lora else None, BASE_MODEL, BASE_REVISION, DRAWING)
        request = PreviewRequest(prompts, (1, 2), DRAWING)
        return preview_single(single, request, lora.path if lora else None, backbone, store)

    prompts = ("a sks robot in neon style", "a sks robot on sand in neon style")
    request = PreviewRequest(prompts, (1, 2), DRAWING)
    evidence = Evidence(
        merge=preview_merge(recipe, request, subject.path, style.path, backbone, store),
        base=alone(None, *prompts),
        subject=alone(subject, subject.prompt),
        style=alone(style, style.prompt),
        subject_references=subject.references,
        style_references=style.references,
    )
    rows = score_merge(recipe.merge_id, evidence, scorers, store)
    assert len(rows) == len(scorers) * len(request.wanted)
    written = sorted(path.relative_to(store.root).parts[0] for path in store.root.rglob("*.json"))
    assert written == ["calibrations"] * 2 + ["merges"] * 3 + ["singles"] * 3
