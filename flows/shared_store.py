"""The store that machines share, if the settings name one, and the files that each of its results consists of."""

from pathlib import Path

from catalog.mirror import Mirror
from flows.plan import Input
from flows.settings import Settings
from ziplora.adapter import CONFIG_NAME
from ziplora.store import Store

Files = tuple[Path, ...]
"""All files of a result, the last one of which is its record."""


def mirror_of(settings: Settings) -> Mirror | None:
    """The shared store; None where each machine has its own."""
    return Mirror(settings.store_url, settings.store_folder) if settings.store_url else None


def adapter_files(adapter: Input, store: Store) -> Files:
    """Of an adapter that was fetched from the Hub; none of one that lies in a source's folder."""
    fetched = adapter.file.is_relative_to(store.root)
    return (adapter.file.with_name(CONFIG_NAME), adapter.file) if fetched else ()


def calibration_files(calibration_id: str, store: Store) -> Files:
    """Of what an adapter does alone."""
    tensors = store.calibration(calibration_id)
    return tensors, tensors.with_suffix(".json")


def merge_files(merge_id: str, store: Store) -> Files:
    """Of a merge, without its pictures."""
    folder = store.merge(merge_id)
    return folder / "coefficients.safetensors", folder / "result.json"
