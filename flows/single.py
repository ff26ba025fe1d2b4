"""One pair without catalogue and Prefect: two LoRA files in, one out."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from catalog.candidate import Unfit
from catalog.errors import CatalogueError
from catalog.folder import read_repository
from catalog.hub import Hub
from flows.plan import base_named, filled, slot_of
from flows.progress import tell
from flows.settings import CalibrationSettings, Problem, Role
from ziplora.adapter import Base as Family
from ziplora.adapter import inspect
from ziplora.backbone import device_named, load_backbone
from ziplora.export import merge_files
from ziplora.recipe import Export, Exported, MergeResult, References
from ziplora.store import Store
from ziplora.tinyworld.base import GUIDANCE
from ziplora.tinyworld.bundle import FILES
from ziplora.tinyworld.figures import BACKGROUNDS
from ziplora.tinyworld.world import SIZE


@dataclass(frozen=True)
class _World:
    """How a family of base models is merged on, unless someone says otherwise."""

    base: str
    side: int
    guidance: float
    joint_prompts: tuple[str, ...]


_DEFAULTS = CalibrationSettings()
_SDXL = _World("stabilityai/stable-diffusion-xl-base-1.0", 1024, _DEFAULTS.guidance, tuple(_DEFAULTS.joint_prompts))
_WORLDS: dict[Family, _World] = {
    "sdxl": _SDXL,
    # Which knows no tables and forests.
    "tinyworld": _World(
        str(FILES / "base"),
        SIZE,
        GUIDANCE,
        ("{subject} {style}", *(f"{{subject}} on a {name} background {{style}}" for name in BACKGROUNDS)),
    ),
}


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


def _commit_of(source: str) -> str | None:
    """Of a base model of the Hub; None of a folder, and of what cannot be had, which its loading puts into words."""
    try:
        return None if Path(source).is_dir() else Hub().commit_at_hand(source, "model_index.json")
    except CatalogueError:
        return None


def merge_two(
    subject: Path,
    style: Path,
    out: Path,
    base: str | None,
    method: str,
    prompts: tuple[str | None, str | None],
    export: Export,
    allow_outliers: bool = False,
) -> tuple[MergeResult, Exported]:
    """Merge two files, or repository folders, into an adapter file."""
    subject_file, subject_prompt, subject_pictures = _opened(subject, prompts[0], "subject")
    style_file, style_prompt, style_pictures = _opened(style, prompts[1], "style")
    family = inspect(subject_file).base
    world = _WORLDS.get(family, _SDXL)
    if base is None and family not in _WORLDS:
        fact = f"By its shapes {subject_file.name} was trained on {family}."
        raise Problem("BASE_UNKNOWN", fact, "name its base model with --base.")
    source = base or world.base
    commit = _commit_of(source)
    named = base_named(source, commit)
    backbone = load_backbone(source, *device_named("auto"), commit)
    with tempfile.TemporaryDirectory(prefix="ziplora-") as folder:
        _, result, exported = merge_files(
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
            joint_prompts=filled(world.joint_prompts, subject_prompt, slot_of("style", style_prompt)),
            method=method,
            side=world.side,
            guidance=world.guidance,
            export=export,
            progress=lambda done, total: tell("merging", done, total),
            allow_outliers=allow_outliers,
        )
    return result, exported
