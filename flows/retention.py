"""What is let go at the end of a night: pictures of merges that are bad or old, and copies of adapters only they need.

Coefficients, results and rows are kept always, so a merge can be exported as ever.
"""

import shutil
from datetime import UTC, datetime, timedelta

from catalog.queries import MergeOutline, merge_outlines
from catalog.rankings import best_merges, ranking_scorers
from catalog.schema import Catalogue
from flows.settings import Settings
from ziplora.store import Store


def let_go(settings: Settings, catalogue: Catalogue) -> tuple[int, int]:
    """Delete what the settings do not keep; gives back of how many merges and of how many adapters that was."""
    if settings.store_url is not None or settings.keep.everything:
        return 0, 0
    store, merges = Store(settings.store_folder), merge_outlines(catalogue)
    gone = _gone(settings, catalogue, merges)
    pictures = sum(_delete_pictures(store, one.merge_id) for one in merges if one in gone)
    needed = {sha256 for one in merges if one not in gone for sha256 in (one.subject, one.style)}
    known = {sha256 for one in gone for sha256 in (one.subject, one.style)}
    return pictures, sum(_delete_copy(store, sha256) for sha256 in known - needed)


def _gone(settings: Settings, catalogue: Catalogue, merges: list[MergeOutline]) -> set[MergeOutline]:
    """Finished merges that score too little, or were finished too long ago; one without a score is not a bad one."""
    keep = settings.keep
    scores = {one.merge_id: one.score_01 for one in best_merges(catalogue, ranking_scorers(catalogue))}
    oldest = datetime.now(UTC) - timedelta(days=keep.days) if keep.days is not None else None
    return {
        one
        for one in merges
        if one.finished_at is not None
        and (scores.get(one.merge_id, 1.0) < keep.least_score or (oldest is not None and one.finished_at < oldest))
    }


def _delete_pictures(store: Store, merge_id: str) -> bool:
    """The record goes first: without it no picture is missing."""
    folder = store.previews(merge_id)
    if not folder.is_dir():
        return False
    (folder / "previews.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
    return True


def _delete_copy(store: Store, sha256: str) -> bool:
    """A copy of an adapter from the Hub; what is in a source's folder is not ours."""
    copy = store.adapter(sha256)
    there = copy.is_file()
    copy.unlink(missing_ok=True)
    return there
