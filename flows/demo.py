"""The settings of the demo: a night on the bundled tiny world."""

import shutil
from pathlib import Path

from flows.settings import Problem
from ziplora.tinyworld.bundle import FILES

_TEMPLATE = Path(__file__).parent / "demo.yaml"
_PARTS = ("base", "encoders", "adapters", "faults")


def write_config(out: Path) -> Path:
    """Write the demo's CONFIG and the adapters that it scans to a folder, once; gives back the CONFIG's path."""
    missing = [part for part in _PARTS if not (FILES / part).is_dir()]
    if missing:
        fact = f"The tiny world in {FILES} has no {' and no '.join(missing)}."
        raise Problem("TINY_WORLD_MISSING", fact, "make them: python -m ziplora.tinyworld.train adapters.", 3)
    config = out / "night.yaml"
    if not config.exists():
        for part in _PARTS:
            shutil.copytree(FILES / part, out / part, dirs_exist_ok=True)
        shutil.copyfile(_TEMPLATE, config)
    return config
