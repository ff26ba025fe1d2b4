"""A calibration is computed once per adapter, kept by content, and never trusted unread."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ziplora.adapter import read
from ziplora.backbone import Sdxl
from ziplora.calibration import Calibrated, calibrate, predict_all, spread_timesteps
from ziplora.failure import Failure
from ziplora.store import Store

from .conftest import SIDE, Lora, MakeLora


def tensors_equal(one: Calibrated, other: Calibrated) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("noisy", "timesteps", "teacher", "effects")
    ) and all(
        torch.equal(getattr(one.condition, name), getattr(other.condition, name))
        for name in ("hidden", "pooled", "time_ids")
    )


def test_the_targets_are_the_loras_own_predictions(backbone: Sdxl, subject: Lora, store: Store) -> None:
    found = calibrate(subject.calibration(), subject.path, backbone, store, subject.references)
    arguments = (backbone, found.noisy, found.timesteps, backbone.condition(subject.prompt, SIDE))
    with backbone.adapted(read(subject.path).layers):
        teacher = predict_all(*arguments)
    torch.testing.assert_close(found.teacher, teacher)
    torch.testing.assert_close(found.effects, (teacher - predict_all(*arguments)).square().flatten(1).mean(1))
    assert found.noisy.shape == (4, 32, 8, 8)
    assert found.effect > 0


def test_text_layers_are_no_part_of_the_targets(backbone: Sdxl, style: Lora, store: Store) -> None:
    found = calibrate(style.calibration(), style.path, backbone, store, style.references)
    assert torch.equal(found.condition.hidden, backbone.condition(style.prompt, SIDE).hidden)
    unet = {module: layer for module, layer in read(style.path).layers.items() if module.part == "unet"}
    with backbone.adapted(unet):
        teacher = predict_all(backbone, found.noisy, found.timesteps, found.condition)
    torch.testing.assert_close(found.teacher, teacher)


def test_the_second_time_nothing_is_computed(backbone: Sdxl, subject: Lora, store: Store, tmp_path: Path) -> None:
    first = calibrate(subject.calibration(), subject.path, backbone, store, subject.references)
    again = calibrate(subject.calibration(), tmp_path / "gone", backbone, store, subject.references)
    assert tensors_equal(first, again)


def test_the_same_calibration_is_the_same_bytes(backbone: Sdxl, subject: Lora, tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        store = Store(tmp_path / name)
        calibrate(subject.calibration(), subject.path, backbone, store, subject.references)
        contents.append(store.calibration(subject.calibration().calibration_id).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_calibration_is_computed_again(
    damage: str, backbone: Sdxl, subject: Lora, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    request = subject.calibration()
    first = calibrate(request, subject.path, backbone, store, subject.references)
    path = store.calibration(request.calibration_id)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-10])
    with caplog.at_level(logging.WARNING, "ziplora"):
        again = calibrate(request, subject.path, backbone, store, subject.references)
    assert tensors_equal(first, again)
    assert "OBJECT_CORRUPT" in caplog.text


def test_without_references_the_lora_draws_its_own(backbone: Sdxl, style: Lora, store: Store) -> None:
    request = replace(style.calibration(), references_sha256=None, pictures=2, steps=2)
    drawn = calibrate(request, style.path, backbone, store)
    given = calibrate(style.calibration(), style.path, backbone, store, style.references)
    assert drawn.noisy.shape == given.noisy.shape
    assert drawn.teacher.isfinite().all()


def test_each_calibration_has_its_own_noise_and_timesteps(
    backbone: Sdxl, subject: Lora, style: Lora, store: Store
) -> None:
    one = calibrate(subject.calibration(), subject.path, backbone, store, subject.references)
    other = calibrate(style.calibration(), style.path, backbone, store, style.references)
    assert not torch.equal(one.timesteps, other.timesteps)


def test_timesteps_cover_all_noise_levels() -> None:
    timesteps = spread_timesteps(10, 1000, torch.Generator().manual_seed(1))
    assert (timesteps // 100).tolist() == list(range(10))


def test_other_pictures_than_planned_are_refused(backbone: Sdxl, subject: Lora, style: Lora, store: Store) -> None:
    with pytest.raises(Failure, match="reference pictures have the digest") as caught:
        calibrate(subject.calibration(), subject.path, backbone, store, style.references)
    assert caught.value.code == "REFERENCES_MISMATCH"


def test_a_teacher_that_is_not_finite_is_a_failure(backbone: Sdxl, make_lora: MakeLora, store: Store) -> None:
    lora = make_lora("wild", "kohya", alphas=(6e4,), ranks=(1,), seed=5)
    layers = backbone.pipeline.unet.get_parameter("conv_out.bias")
    kept = layers.detach().clone()
    try:
        layers.data.fill_(torch.inf)
        with pytest.raises(Failure, match="NaN or infinite") as caught:
            calibrate(lora.calibration(), lora.path, backbone, store, lora.references)
    finally:
        layers.data.copy_(kept)
    assert caught.value.code == "NON_FINITE_TEACHER"
    assert not store.calibration(lora.calibration().calibration_id).exists()


def test_a_lora_without_effect_is_a_failure(backbone: Sdxl, make_lora: MakeLora, store: Store) -> None:
    lora = make_lora("faint", "kohya", alphas=(6e-8,), seed=6)
    with pytest.raises(Failure, match="changes nothing in the base's predictions") as caught:
        calibrate(lora.calibration(), lora.path, backbone, store, lora.references)
    assert caught.value.code == "TEACHER_WITHOUT_EFFECT"
