"""Everything from nothing, in tens of steps."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from ziplora.tinyworld import measure, train
from ziplora.tinyworld.base import draw


@pytest.mark.slow
def test_the_whole_tiny_world_is_made_and_measured_in_smoke_mode(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = ["all", "--smoke", "--out", str(out), "--work", str(work), "--device", "cpu"]
    train.main(arguments)
    manifest = json.loads((out / "manifest.json").read_text())
    names = {"autoencoder", "base", "clip", "subject", "style", "judge", "adapter-robot", "adapter-fish"}
    assert manifest["trained"].keys() == names
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == facts["sha256"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(out / "base", torch_dtype=torch.float32)
    assert draw(pipeline, ["a red star"], seed=0, steps=2).shape == (1, 64, 64, 3)

    hashes = manifest["files"]
    train.main(arguments)
    again = json.loads((out / "manifest.json").read_text())
    assert again["files"] == hashes
    assert again["trained"] == manifest["trained"]

    judge = measure.load_judge(out / "judge", torch.device("cpu"))
    measured, pictures = measure.measure_base(pipeline, judge, count=4, seed=0)
    assert measured["captions"] == len(pictures) == 4
    assert set(measured["right"]) == {"figure", "colour", "background", "style"}
    assert measure.measure_retrieval(out / "encoders" / "clip", batches=1, seed=0)["pictures"] == 64
