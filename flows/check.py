"""What is wrong before a night begins, all at once; and whether this machine has what a night needs."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from catalog.doctor import faults
from catalog.errors import CatalogueError
from catalog.hub import Hub
from catalog.hub_errors import PASSING
from catalog.schema import open_catalogue
from flows.settings import FolderSource, Problem, Problems, Settings, load_settings, prefect_api_url
from flows.shared_store import mirror_of
from ziplora.failure import Failure
from ziplora.methods import complete_parameters

_LEAST_FREE_BYTES = 1_000_000_000
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "huggingface_hub", "prefect", "duckdb")


def problems_of(config: Path) -> tuple[Problem, ...]:
    """Everything that would stop a night of this CONFIG, found without a download."""
    try:
        settings = load_settings(config)
    except Problems as error:
        return error.problems
    return tuple(_problems(settings))


def _problems(settings: Settings) -> Iterator[Problem]:
    for source in settings.sources:
        if isinstance(source, FolderSource) and not source.folder.is_dir():
            yield Problem("FOLDER_MISSING", f"There is no folder {source.folder}.", "mend sources in the settings.")
    encoders = settings.scorers.model_dump()
    for what, model, sign in (
        ("base_model.id", settings.base_model.id, "model_index.json"),
        *((f"scorers.{role}", encoder, "config.json") for role, encoder in encoders.items()),
    ):
        if _is_path(model) and not (Path(model) / sign).is_file():
            yield Problem(
                "BASE_MISSING" if what == "base_model.id" else "ENCODER_MISSING",
                f"{what} is {model}, and there is no {sign} in it.",
                "name a model's folder or a Hub id.",
            )
    if not _is_path(settings.base_model.id) and settings.base_model.revision is None:
        fact = f"base_model.revision is not set, and {settings.base_model.id} may change under the night."
        yield Problem("BASE_UNPINNED", fact, "set it to a commit of that repository.")
    for chosen in settings.methods:
        try:
            complete_parameters(chosen.method, chosen.parameters)
        except Failure as error:
            yield Problem(error.code, error.fact, error.next_step)
    yield from _places(settings)


def _is_path(model: str) -> bool:
    """Whether a model is named by its folder: an id of the Hub has one slash, and no dot before it."""
    return model.count("/") != 1 or model.startswith((".", "/", "~"))


def _places(settings: Settings) -> Iterator[Problem]:
    """Trouble with where results go."""
    for folder in (settings.store_folder, settings.gallery.parent, settings.snapshot.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            yield Problem("NOT_WRITABLE", f"{folder} cannot be made: {error.strerror}.", "choose another place.", 3)
            return
    free = shutil.disk_usage(settings.store_folder).free
    if free < _LEAST_FREE_BYTES:
        fact = f"{free / 1e9:.2f} GB are free at {settings.store_folder}, a night needs {_LEAST_FREE_BYTES / 1e9:.0f}."
        yield Problem("DISK_FULL", fact, "free some, or choose another store.", 3)
    try:
        mirror = mirror_of(settings)
        if mirror is not None:
            mirror.check()
    except CatalogueError as error:
        yield Problem(error.code, str(error).partition(": ")[2], "mend store in the settings.", 3)
    try:
        open_catalogue(settings.catalogue).dispose()
    except CatalogueError as error:
        if error.code not in ("CATALOGUE_MISSING", "CATALOGUE_OLDER"):  # a night makes or updates it
            yield Problem(error.code, str(error).partition(": ")[2], "mend catalogue in the settings.", 3)
    if settings.publish.enabled or not all(isinstance(source, FolderSource) for source in settings.sources):
        yield from _token(settings.publish.enabled)


def _token(publishes: bool) -> Iterator[Problem]:
    """Trouble with the Hub's token; a Hub that does not answer is none, since a night merges without it."""
    try:
        if Hub().check_token(writes=publishes) is None and publishes:
            yield Problem("AUTH", "Publishing is enabled and there is no token.", "set HF_TOKEN.", 3)
    except CatalogueError as error:
        if error.code not in PASSING:
            yield Problem(error.code, str(error).partition(": ")[2], "set another HF_TOKEN.", 3)


@dataclass(frozen=True)
class Finding:
    """Something about this machine; with a next step when it is not as it should be."""

    what: str
    found: str
    next_step: str = ""


def environment() -> list[Finding]:
    """What a night needs of a machine."""
    findings = [Finding("python", sys.version.split()[0])]
    for package in _PACKAGES:
        try:
            findings.append(Finding(package, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "not installed", "pip install -c constraints.txt -e '.[gpu]'"))
    free = shutil.disk_usage(Path.cwd()).free
    too_full = "free some room" if free < _LEAST_FREE_BYTES else ""
    findings.append(Finding("disk", f"{free / 1e9:.1f} GB free here", too_full))
    findings.append(Finding("device", _device()))
    findings.append(Finding("prefect server", prefect_api_url() or "none: a night shows itself in the terminal only"))
    return findings


def disagreements(config: Path, *, repair: bool) -> list[Finding]:
    """Where the catalogue and the store of a CONFIG disagree, mended if that is wanted; no night may run meanwhile."""
    settings = load_settings(config)
    if settings.store_url is not None:
        fact = f"The store is at {settings.store_url}, and what machines have of it on their disks may lack anything."
        raise Problem("STORE_SHARED", fact, "run it without CONFIG, or with a store in a folder.")
    found = faults(open_catalogue(settings.catalogue), settings.store_folder)
    if repair:
        for fault in found:
            fault.repair()
    return [
        Finding(f"{one.reason.code} {one.item}", one.reason.fact, "" if repair else one.reason.next_step)
        for one in found
    ]


def _device() -> str:
    from ziplora.backbone import device_named

    return " ".join(device_named("auto"))
