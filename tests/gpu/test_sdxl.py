"""A few steps at SDXL's true size, with all of the card's memory and with that of a consumer's card."""

import json
from pathlib import Path

import pytest
import torch

from tests.bench.gpu_sdxl import main


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pair_of_true_size_fits_a_consumers_card(tmp_path: Path) -> None:
    main(["--side", "1024", "--steps", "4", "--json", str(tmp_path / "f.json")])
    found = json.loads((tmp_path / "f.json").read_text())
    capped = [pair for pair in found["pairs"] if pair["capped"]]
    assert [pair["method"] for pair in capped] == ["ziplora", "ziplora", "ziplora-joint"]
    assert all(pair["peak_bytes"] < 23 << 30 for pair in capped)
