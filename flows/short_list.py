"""More pictures for the best merges: which these are, and whether they have them."""

from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from catalog.queries import failing_finished_merge_ids, pictures_seen
from catalog.rankings import best_merges, ranking_scorers
from catalog.schema import Catalogue
from flows.plan import Job, Wishes
from flows.settings import Settings
from ziplora.store import Store


def with_further_seeds(settings: Settings) -> Settings:
    """The same night, with the seeds of the short list too for every merge."""
    previews = settings.previews
    further = previews.short_list.seeds if previews.short_list else ()
    return settings.model_copy(update={"previews": previews.model_copy(update={"seeds": (*previews.seeds, *further)})})


def rounds(settings: Settings, catalogue: Catalogue, wishes: Wishes) -> Iterator[list[Job]]:
    """Those of the best wanted merges that lack further pictures, again after each round until there are no others.

    A merge that few pictures put among the best may be there by luck: it falls back once it was seen in more, and
    another one comes forward. In the end the best are the best of those that were seen in all pictures.
    """
    chosen = settings.previews.short_list
    more = with_further_seeds(settings)
    tried: set[str] = set()
    while chosen is not None:
        lacking = lacking_pictures(more, catalogue, list(islice(_best(catalogue, wishes), chosen.merges)))
        new = [job for job in lacking if job.recipe.merge_id not in tried]
        if not new:
            return
        tried.update(job.recipe.merge_id for job in new)
        yield new


def _best(catalogue: Catalogue, wishes: Wishes) -> Iterator[Job]:
    """The merges that `pick` ranks, the best first; without those whose further pictures fail again and again."""
    failing = failing_finished_merge_ids(catalogue)
    for one in best_merges(catalogue, ranking_scorers(catalogue)):
        job = wishes.job_of(one.subject, one.style, one.merge_id)
        if job is not None and one.merge_id not in failing:
            yield job


def lacking_pictures(settings: Settings, catalogue: Catalogue, jobs: Sequence[Job]) -> list[Job]:
    """Those of these merges that no scorer has seen in all pictures of the settings."""
    previews = settings.previews
    seen = pictures_seen(catalogue, [job.recipe.merge_id for job in jobs])
    return [
        job
        for job in jobs
        if not seen.get(job.recipe.merge_id, set()).issuperset(product(job.prompts(previews.prompts), previews.seeds))
    ]


def ranked_pictures(settings: Settings, catalogue: Catalogue, jobs: Sequence[Job]) -> list[tuple[str, Path]]:
    """Those of these merges that can be ranked, the best first: score and name, and the first picture."""
    names = {job.recipe.merge_id: job.name for job in jobs}
    store = Store(settings.store_folder)
    ranked = [one for one in best_merges(catalogue, ranking_scorers(catalogue)) if one.merge_id in names]
    pictures = ((one, sorted(store.previews(one.merge_id).glob("[0-9a-f]*.png"))) for one in ranked)
    return [(f"{one.score_01:.2f} {names[one.merge_id]}", found[0]) for one, found in pictures if found]
