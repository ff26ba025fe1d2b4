"""Make the tiny world from nothing: `python -m ziplora.tinyworld.train base|encoders|adapters|all`.

Every part is seeded and resumable: state, loss logs and rendered pictures are kept in the work folder, finished
models go to the output folder with a manifest of hashes and training figures.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .adapters import PLANS, train_adapter
from .autoencoder import train_autoencoder
from .base import train_base
from .bundle import FILES, load_base, save_base, save_judge
from .encoders import save_encoders, train_clip, train_style_encoder, train_subject_encoder
from .faults import write_faults
from .judge import train_judge
from .repository import write_repository
from .text import build_tokenizers
from .training import Trained


@dataclass(frozen=True)
class Size:
    """How much is rendered and how long everything is trained."""

    base_pictures: tuple[int, int]
    autoencoder_pictures: int
    encoder_pictures: int
    judge_pictures: int
    autoencoder_steps: int
    base_steps: tuple[int, int]
    clip_steps: int
    subject_steps: int
    style_steps: int
    judge_steps: int
    adapter_steps: int


FULL = Size(
    base_pictures=(40_000, 10_000),
    autoencoder_pictures=12_000,
    encoder_pictures=12_000,
    judge_pictures=24_000,
    autoencoder_steps=5_000,
    base_steps=(3_000, 4_000),
    clip_steps=500,
    subject_steps=3_000,
    style_steps=600,
    judge_steps=2_400,
    adapter_steps=1_000,
)
SMOKE = Size(
    base_pictures=(256, 128),
    autoencoder_pictures=256,
    encoder_pictures=512,
    judge_pictures=256,
    autoencoder_steps=20,
    base_steps=(10, 5),
    clip_steps=5,
    subject_steps=5,
    style_steps=5,
    judge_steps=20,
    adapter_steps=2,
)
"""Tens of steps: shows that every part runs, and learns nothing."""


_SPOILT = "house"
"""The adapter that the faults are made from, a few layers of it."""


def _train_base(out: Path, work: Path, size: Size, seed: int, device: torch.device) -> list[Trained]:
    autoencoder, first = train_autoencoder(work, size.autoencoder_steps, size.autoencoder_pictures, seed, device)
    pipeline, others = train_base(autoencoder, work, size.base_steps, size.base_pictures, seed, device)
    save_base(out / "base", pipeline)
    return [first, *others]


def _train_encoders(out: Path, work: Path, size: Size, seed: int, device: torch.device) -> list[Trained]:
    tokenizer, _ = build_tokenizers()
    style, style_trained = train_style_encoder(work, size.style_steps, size.encoder_pictures, seed, device)
    subject, subject_trained = train_subject_encoder(work, size.subject_steps, size.encoder_pictures, seed, device)
    clip, clip_trained = train_clip(tokenizer, work, size.clip_steps, size.encoder_pictures, seed, device)
    save_encoders(out / "encoders", clip, tokenizer, subject, style)
    autoencoder = load_base(out / "base", device).vae
    judge, judge_trained = train_judge(autoencoder, work, size.judge_steps, size.judge_pictures, seed, device)
    save_judge(out / "judge", judge)
    return [style_trained, subject_trained, clip_trained, judge_trained]


def _train_adapters(out: Path, work: Path, size: Size, seed: int, device: torch.device) -> list[Trained]:
    pipeline = load_base(out / "base", device)
    trained = []
    for plan in PLANS:
        adapter = train_adapter(pipeline, plan, work, size.adapter_steps * plan.effort, seed, device)
        write_repository(out / "adapters", adapter.facts, adapter.unet, adapter.text_encoder, adapter.samples)
        trained.append(adapter.trained)
        if plan.name == _SPOILT:
            few = {name: layer for name, layer in adapter.unet.items() if name.startswith("mid_block")}
            codes = write_faults(out / "faults", adapter.facts, few)
            (out / "faults" / "codes.json").write_text(json.dumps(codes, indent=1) + "\n")
    return trained


def _write_manifest(out: Path, trained: Sequence[Trained], seed: int) -> None:
    """Hashes of all files, and what each training took; trainings of earlier runs are kept."""
    path = out / "manifest.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"trained": {}}
    files = sorted(file for file in out.rglob("*") if file.is_file() and file.parent != out)
    manifest = {
        "seed": seed,
        "trained": before["trained"] | {one.name: asdict(one) for one in trained},
        "files": {
            str(file.relative_to(out)): {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "size_bytes": file.stat().st_size,
            }
            for file in files
        },
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train the named parts."""
    parser = argparse.ArgumentParser(prog="python -m ziplora.tinyworld.train", description=__doc__)
    parser.add_argument("part", choices=("base", "encoders", "adapters", "all"))
    parser.add_argument(
        "--out", type=Path, default=FILES, help="folder of the finished files (default: the bundled ones)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/tinyworld"), help="folder of checkpoints and loss logs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="tens of steps only: does every part run?")
    options = parser.parse_args(arguments)
    size = SMOKE if options.smoke else FULL
    stages = {"base": _train_base, "encoders": _train_encoders, "adapters": _train_adapters}
    for name, stage in stages.items():
        if options.part in (name, "all"):
            trained = stage(options.out, options.work, size, options.seed, torch.device(options.device))
            _write_manifest(options.out, trained, options.seed)


if __name__ == "__main__":
    main()
