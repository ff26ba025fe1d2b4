"""One pair without catalogue and Prefect: two LoRA files in, one out."""

import tempfile
from pathlib import Path
from typing import Literal

from catalog.candidate import Unfit
from catalog.folder import read_repository
from flows.plan import base_named, filled, slot_of
from flows.progress import tell
from flows.settings import CalibrationSettings, Problem, Role
from ziplora.adapter import Base as Family
from ziplora.adapter import inspect
from ziplora.backbone import device_named, load_backbone
from ziplora.export import merge_files
from ziplora.recipe import Export, MergeResult, References
from ziplora.store import Store
from ziplora.tinyworld.bundle import FILES
from ziplora.tinyworld.figures import BACKGROUNDS

_BASES: dict[Family, str] = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0", "tinyworld": str(FILES / "base")}
_SIDES: dict[Family, int] = {"sdxl": 1024, "tinyworld": 64}
_TINY_TEMPLATES = ("{subject} {style}", *(f"{{subject}} on a {name} background {{style}}" for name in BACKGROUNDS))
"""The tiny world knows no tables and forests."""


def _opened(path: Path, prompt: str | None, role: Role) -> tuple[Path, str, References | None]:
    """An adapter's file, its trigger prompt and its pictures."""
    if not path.exists():
        raise Problem("FILE_MISSING", f"There is no {role} {path}.", "name a LoRA file or a repository folder.")
    repository = path if path.is_dir() else path.parent
    offer = read_repository(repository, None if path.is_dir() else path.name)
    if isinstance(offer, Unfit):
        raise Problem(offer.reason.code, f"{path}: {offer.reason.fact}", offer.reason.next_step)
    called = prompt or next(iter(offer.card.instance_prompts), None)
    if called is None:
        raise Problem("NO_TRIGGER_PROMPT", f"No card says what calls {path} up.", f"say it with --{role}-prompt.")
    samples = tuple(sample for sample in offer.sample_paths if sample.is_file())
    return repository / offer.file_name, called, References(samples, "samples") if samples else None


def merge_two(
    subject: Path,
    style: Path,
    out: Path,
    base: str | None,
    method: str,
    prompts: tuple[str | None, str | None],
    dialect: Literal["diffusers", "kohya"],
    style_strength: float,
) -> MergeResult:
    """Merge two files, or repository folders, into an adapter file."""
    subject_file, subject_prompt, subject_pictures = _opened(subject, prompts[0], "subject")
    style_file, style_prompt, style_pictures = _opened(style, prompts[1], "style")
    family = inspect(subject_file).base
    source = base or _BASES.get(family)
    if source is None:
        fact = f"By its shapes {subject_file.name} was trained on {family}."
        raise Problem("BASE_UNKNOWN", fact, "name its base model with --base.")
    named = base_named(source)
    backbone = load_backbone(source, *device_named("auto"))
    with tempfile.TemporaryDirectory(prefix="ziplora-") as folder:
        _, result = merge_files(
            subject_file,
            style_file,
            out,
            backbone,
            named.model,
            named.revision,
            Store(Path(folder)),
            subject_prompt=subject_prompt,
            style_prompt=style_prompt,
            subject_references=subject_pictures,
            style_references=style_pictures,
            joint_prompts=filled(
                _TINY_TEMPLATES if family == "tinyworld" else CalibrationSettings().joint_prompts,
                subject_prompt,
                slot_of("style", style_prompt),
            ),
            method=method,
            side=_SIDES.get(family, 1024),
            export=Export(dialect=dialect, style_strength=style_strength),
            progress=lambda done, total: tell("merging", done, total),
        )
    return result
