"""Everything from nothing, in tens of steps."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from ziplora.tinyworld import measure, train
from ziplora.tinyworld.adapters import PLANS
from ziplora.tinyworld.page import page


@pytest.mark.slow
def test_the_whole_tiny_world_is_made_and_measured_in_smoke_mode(tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = ["all", "--smoke", "--out", str(out), "--work", str(work), "--device", "cpu"]
    train.main(arguments)
    manifest = json.loads((out / "manifest.json").read_text())
    adapters = {f"adapter-{plan.name}" for plan in PLANS}
    assert (
        manifest["trained"].keys()
        == {"autoencoder", "base", "base-figures", "clip", "subject", "style", "judge"} | adapters
    )
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == facts["sha256"]

    train.main(arguments)
    assert json.loads((out / "manifest.json").read_text()) == manifest

    docs = tmp_path / "docs"
    measure.main(["--files", str(out), "--docs", str(docs), "--smoke"])
    measured = json.loads((out / "measured.json").read_text())
    assert len(measured["adapters"]) == 16
    assert len(measured["direct"]) == 64
    assert (docs / "README.md").read_text() == page(measured)
    for sheet in ("world.png", "base.png", "adapters.png", "direct.png"):
        with Image.open(docs / sheet) as picture:
            assert min(picture.size) > 500
