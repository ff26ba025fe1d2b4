"""The benchmark of SDXL's true size runs on any machine, on a UNet of a tenth of the width."""

import json
from pathlib import Path

import pytest
import torch

from tests.sdxl import SDXL, build_unet

from .gpu_sdxl import main


def test_it_measures_both_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "--device",
            "cpu",
            "--reduced",
            "--side",
            "16",
            "--steps",
            "3",
            "--rank",
            "2",
            "--json",
            str(tmp_path / "f.json"),
        ]
    )
    found = json.loads((tmp_path / "f.json").read_text())
    assert [pair["method"] for pair in found["pairs"]] == ["ziplora", "ziplora", "ziplora-joint"]
    assert {pair["thrift"] for pair in found["pairs"]} == {"none"}
    assert all(pair["pairs_per_hour"] > 0 and 0 < pair["rate_share"] < 1 for pair in found["pairs"])
    assert "joint targets" in capsys.readouterr().out


def test_the_true_unet_is_sdxls() -> None:
    """2,567 million parameters."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build_unet(SDXL).parameters()) == 2_567_463_684
