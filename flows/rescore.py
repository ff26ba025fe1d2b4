"""Scores of finished merges by other scorers, from kept pictures: nothing is merged or drawn again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from catalog.errors import Refused
from catalog.facts import Reason, Role, ScoreSummary
from catalog.queries import finished_merge_ids, recipe_of, result_of
from catalog.schema import Catalogue, open_catalogue
from catalog.sidecars import MERGE_FACTS
from catalog.story import scores_by_merge
from flows.plan import Base, Input, Job, base_of
from flows.progress import tell
from flows.results import inputs_of
from flows.settings import Settings
from flows.shared_store import mirror_of
from flows.short_list import lacking_pictures, with_further_seeds
from flows.trouble import reason_of
from flows.worker import Worker
from ziplora.preview import kept_pictures
from ziplora.recipe import PreviewRequest, PreviewResult, Recipe, Single

_ROLES: tuple[Role, Role] = ("subject", "style")


@dataclass(frozen=True)
class Rescored:
    """What became of the finished merges."""

    scored: int
    before: int
    """Merges that these scorers had seen."""
    failed: tuple[tuple[str, Reason], ...]


class Rescorer(Worker):
    """A worker that draws nothing."""

    def __init__(self, settings: Settings, base: Base) -> None:
        super().__init__(settings, base)
        self.mirror = mirror_of(settings)

    def draw_merge(self, job: Job, request: PreviewRequest) -> PreviewResult:
        """Kept pictures of a merge."""
        return self._kept(self.store.previews(job.recipe.merge_id), request)

    def draw_single(self, single: Single, request: PreviewRequest, adapter: Path | None) -> PreviewResult:  # noqa: ARG002
        """Kept pictures of one adapter alone, or of the base alone."""
        return self._kept(self.store.single(single.single_id), request)

    def _kept(self, folder: Path, request: PreviewRequest) -> PreviewResult:
        if self.mirror is not None:
            self.mirror.fetch_pictures(folder, request.wanted)
        return kept_pictures(folder, request)

    def has_seen(self, scores: tuple[ScoreSummary, ...]) -> bool:
        """Whether these are by its own scorers."""
        own = {scorer.encoder_id for scorer in self.scorers}
        return {one.scorer_id.removesuffix(":samples").removesuffix(":drawn") for one in scores} == own

    def rescore(self, catalogue: Catalogue, job: Job) -> None:
        """Score a merge and write down what was seen, on this disk and in a shared store."""
        scores, sidecar = (self.store.merge(job.recipe.merge_id) / name for name in ("scores.json", MERGE_FACTS))
        if self.mirror is not None:
            self.mirror.fetch(scores)
        measured = result_of(catalogue, job.recipe.merge_id)
        assert measured is not None  # only finished merges come here
        self.record_scores(job, measured, self.score(job, self.preview(job)))
        if self.mirror is not None:
            self.mirror.replace(scores)
            self.mirror.replace(sidecar)


def rescore(settings: Settings) -> Rescored:
    """Have the settings' scorers see all finished merges that they have not seen; one that fails stops no other."""
    catalogue = open_catalogue(settings.catalogue)
    adapters = {role: inputs_of(catalogue, settings, role) for role in _ROLES}
    worker, more = Rescorer(settings, base_of(settings)), with_further_seeds(settings)
    seen, failed, scored = scores_by_merge(catalogue), [], 0
    wanted = [one for one in sorted(finished_merge_ids(catalogue)) if not worker.has_seen(seen.get(one, ()))]
    before = len(finished_merge_ids(catalogue)) - len(wanted)
    for number, merge_id in enumerate(wanted):
        tell("merges", number, len(wanted))
        try:
            job = _job(catalogue, adapters, merge_id)
            worker.base = Base(job.recipe.base_model, job.recipe.base_revision)
            worker.settings = settings if lacking_pictures(more, catalogue, [job]) else more
            worker.rescore(catalogue, job)
            scored += 1
        except Exception as error:  # noqa: BLE001 - whatever one merge does, the others are scored
            failed.append((merge_id, reason_of(error)))
    return Rescored(scored, before, tuple(failed))


def _job(catalogue: Catalogue, adapters: Mapping[Role, Mapping[str, Input]], merge_id: str) -> Job:
    """A finished merge with its adapters, whose files are not needed."""
    recipe = Recipe.from_json(json.dumps(recipe_of(catalogue, merge_id)))
    parents = dict(zip(_ROLES, (recipe.subject_sha256, recipe.style_sha256), strict=True))
    for role, sha256 in parents.items():
        if sha256 not in adapters[role]:
            fact = f"The {role} {sha256[:12]} of merge {merge_id[:12]} is not usable any more."
            raise Refused(Reason("PARENT_MISSING", fact, f"ziplora why {sha256[:12]} tells what became of it."))
    subject, style = (adapters[role][sha256] for role, sha256 in parents.items())
    return Job(recipe, subject, style, None)
