"""A score says what it compares, lies between floor and ceiling of its pair, and is computed once."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, Dinov2Model, ViTConfig, ViTModel
from transformers import logging as transformers_logging

from ziplora.failure import Failure
from ziplora.recipe import Picture, PreviewResult, References
from ziplora.score import Evidence, Metric, Scorer, ScorerSpec, harmonic_mean, load_scorer, position, score_merge
from ziplora.store import Store
from ziplora.tinyworld.encoders import build_clip, build_style_encoder, build_subject_encoder, save_encoders
from ziplora.tinyworld.text import build_tokenizers

from .conftest import random_pictures


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    tokenizer = build_tokenizers()[0]
    save_encoders(folder, build_clip(tokenizer), tokenizer, build_subject_encoder(), build_style_encoder())
    return folder


def scorer(encoders: Path, metric: Metric, name: str) -> Scorer:
    return load_scorer(ScorerSpec(metric, f"test/{name}", encoders / name))


@pytest.fixture(scope="module")
def scorers(encoders: Path) -> list[Scorer]:
    return [
        scorer(encoders, "clip-t", "clip"),
        scorer(encoders, "clip-i", "style"),
        scorer(encoders, "dino", "subject"),
    ]


def shown(folder: Path, prompts: Sequence[str], seed: int) -> PreviewResult:
    paths = random_pictures(folder, len(prompts), seed).paths
    return PreviewResult(
        folder,
        folder / "sheet.png",
        tuple(
            Picture(path.name, prompt, number) for number, (path, prompt) in enumerate(zip(paths, prompts, strict=True))
        ),
    )


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    pair = ("a sks robot in neon style", "a sks robot on a white background")
    return Evidence(
        merge=shown(tmp_path / "merge", pair, 1),
        base=shown(tmp_path / "base", pair, 2),
        subject=shown(tmp_path / "subject", ("a sks robot",), 3),
        style=shown(tmp_path / "style", ("a red star in neon style",) * 3, 4),
        subject_references=random_pictures(tmp_path / "subject-references", 3, 5),
        style_references=replace(random_pictures(tmp_path / "style-references", 2, 6), kind="drawn"),
    )


def opened(paths: Sequence[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def test_ids_carry_metric_encoder_weights_and_references(
    scorers: list[Scorer], evidence: Evidence, store: Store
) -> None:
    rows = score_merge("m", evidence, scorers, store)
    ids = list(dict.fromkeys(row.scorer_id for row in rows))
    assert [scorer_id.split("@")[0] for scorer_id in ids] == [
        "clip-t:test/clip",
        "clip-i:test/style",
        "dino:test/subject",
    ]
    assert [scorer_id.split(":")[3:] for scorer_id in ids] == [[], ["drawn"], ["samples"]]
    assert [row.references_sha256 for row in rows[::2]] == [
        None,
        evidence.style_references.sha256,
        evidence.subject_references.sha256,
    ]
    assert all(-1 <= number <= 1 for row in rows for number in (row.value, row.floor, row.ceiling))


@torch.no_grad()
def test_dino_is_the_cosine_of_class_tokens(
    encoders: Path, scorers: list[Scorer], evidence: Evidence, store: Store
) -> None:
    model = Dinov2Model.from_pretrained(encoders / "subject", dtype=torch.float32)
    processor = BitImageProcessorPil.from_pretrained(encoders / "subject")

    def tokens(paths: Sequence[Path]) -> torch.Tensor:
        pixels = processor(images=opened(paths), return_tensors="pt")["pixel_values"]
        return F.normalize(model(pixels).last_hidden_state[:, 0], dim=-1)

    near = tokens(evidence.subject_references.paths)
    rows = score_merge("m", evidence, scorers[2:], store)
    wanted = (tokens(evidence.merge.paths) @ near.T).mean(1)
    assert [row.value for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert rows[0].floor == pytest.approx(float((tokens(evidence.base.paths) @ near.T).mean()), abs=1e-5)
    assert rows[0].ceiling == pytest.approx(float((tokens(evidence.subject.paths) @ near.T).mean()), abs=1e-5)


@torch.no_grad()
def test_clip_t_is_the_cosine_of_picture_and_prompt(
    encoders: Path, scorers: list[Scorer], evidence: Evidence, store: Store
) -> None:
    model = CLIPModel.from_pretrained(encoders / "clip", dtype=torch.float32)
    processor = CLIPImageProcessorPil.from_pretrained(encoders / "clip")
    tokens = build_tokenizers()[0](
        [picture.prompt for picture in evidence.merge.pictures], padding="max_length", return_tensors="pt"
    )
    pixels = processor(images=opened(evidence.merge.paths), return_tensors="pt")["pixel_values"]
    output = model(**tokens, pixel_values=pixels)
    wanted = (output.image_embeds * output.text_embeds).sum(1)
    rows = score_merge("m", evidence, scorers[:1], store)
    assert [row.value for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_clip_i_takes_a_whole_clip_model_too(encoders: Path, evidence: Evidence, store: Store) -> None:
    rows = score_merge("m", evidence, [scorer(encoders, "clip-i", "clip")], store)
    assert len(rows) == 2


def test_a_picture_is_one_with_itself(scorers: list[Scorer], evidence: Evidence, store: Store) -> None:
    own = replace(evidence, style_references=References(evidence.merge.paths[:1], "samples"))
    assert score_merge("m", own, scorers[1:2], store)[0].value == pytest.approx(1)


class Asleep(Scorer):
    """The id of a scorer, whose encoder nobody may use."""

    def __init__(self, awake: Scorer) -> None:
        self.metric, self.encoder_id = awake.metric, awake.encoder_id


def test_scores_are_computed_once(scorers: list[Scorer], evidence: Evidence, store: Store) -> None:
    rows = score_merge("m", evidence, scorers, store)
    assert score_merge("m", evidence, [Asleep(one) for one in scorers], store) == rows
    assert score_merge("m", evidence, [Asleep(scorers[2])], store) == rows[4:]
    kept = json.loads((store.merge("m") / "scores.json").read_text())
    assert len(kept) == len(rows) == 6
    assert kept[0].keys() >= {"scorer_id", "prompt", "seed", "value", "floor", "ceiling"}


def test_other_references_are_scored_anew(
    scorers: list[Scorer], evidence: Evidence, store: Store, tmp_path: Path
) -> None:
    rows = score_merge("m", evidence, scorers[2:], store)
    other = replace(evidence, subject_references=random_pictures(tmp_path / "other", 3, 9))
    assert score_merge("m", other, scorers[2:], store) != rows


def test_pictures_drawn_anew_are_scored_anew(scorers: list[Scorer], evidence: Evidence, store: Store) -> None:
    rows = score_merge("m", evidence, scorers[2:], store)
    random_pictures(evidence.base.folder, 1, 99)  # under the same name, prompt and seed
    assert score_merge("m", evidence, scorers[2:], store)[0].floor != rows[0].floor


def test_the_same_weights_are_the_same_scorer(encoders: Path, scorers: list[Scorer]) -> None:
    assert scorer(encoders, "dino", "subject").encoder_id == scorers[2].encoder_id


def test_a_pooler_made_up_by_chance_is_no_part_of_the_scorer(encoders: Path, tmp_path: Path) -> None:
    """facebook/dino-vits16 and its like are a ViT without one."""
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    BitImageProcessorPil.from_pretrained(encoders / "subject").save_pretrained(tmp_path / "vit")
    first, second = scorer(tmp_path, "dino", "vit"), scorer(tmp_path, "dino", "vit")
    assert first.encoder_id == second.encoder_id


def test_an_encoder_with_weights_missing_is_named(encoders: Path, tmp_path: Path) -> None:
    shutil.copytree(encoders / "subject", tmp_path / "subject")
    path = tmp_path / "subject" / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if key != "layernorm.weight"}, path)
    with pytest.raises(Failure, match=r"1 of its weights are not in its file, such as layernorm\.weight"):
        scorer(tmp_path, "dino", "subject")


@pytest.mark.parametrize("change", ["weights", "preprocessing"])
def test_another_encoder_has_another_id(change: str, encoders: Path, scorers: list[Scorer], tmp_path: Path) -> None:
    model: Any = Dinov2Model.from_pretrained(encoders / "subject")
    processor = BitImageProcessorPil.from_pretrained(encoders / "subject")
    if change == "weights":
        model.layernorm.weight.data[0] += 0.5
    else:
        processor.image_mean = [0.4, 0.5, 0.5]
    model.save_pretrained(tmp_path / "subject")
    processor.save_pretrained(tmp_path / "subject")
    assert scorer(tmp_path, "dino", "subject").encoder_id != scorers[2].encoder_id


def test_loading_says_nothing(
    encoders: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.INFO, "transformers"):
        scorer(encoders, "clip-t", "clip")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "falling back" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("metric", "name", "fact"),
    [
        ("clip-t", "style", "it reads no text, which clip-t needs"),
        ("clip-i", "subject", "it is a dinov2 model, and clip-i needs CLIP's"),
        ("dino", "nothing", "there is no config.json in"),
    ],
)
def test_an_encoder_that_does_not_fit_is_named(metric: Metric, name: str, fact: str, encoders: Path) -> None:
    with pytest.raises(Failure, match=fact) as caught:
        scorer(encoders, metric, name)
    assert caught.value.code == "ENCODER_MISSING"


def test_scores_that_are_no_numbers_are_a_failure(
    encoders: Path, evidence: Evidence, store: Store, tmp_path: Path
) -> None:
    model: Any = Dinov2Model.from_pretrained(encoders / "subject")
    model.layernorm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "subject")
    BitImageProcessorPil.from_pretrained(encoders / "subject").save_pretrained(tmp_path / "subject")
    with pytest.raises(Failure, match="NaN or infinite") as caught:
        score_merge("m", evidence, [scorer(tmp_path, "dino", "subject")], store)
    assert caught.value.code == "SCORE_INVALID"
    assert not store.merge("m").exists()


def test_positions_and_their_harmonic_mean() -> None:
    assert position(0.5, 0.25, 0.75) == 0.5
    assert harmonic_mean(1.0, 1.0) == 1.0
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(1.5, 0.5) == pytest.approx(2 / 3)
    assert harmonic_mean(-0.1, 1.0) == harmonic_mean(1.0, 0.0) == 0.0
    assert np.isfinite(harmonic_mean(1e-12, 1e-12))
