"""What the next night would do, without doing any of it."""

from statistics import fmean

from catalog.errors import CatalogueError
from catalog.hub import Hub
from catalog.queries import seconds_by_method
from catalog.schema import Catalogue, open_catalogue
from flows.nightly import plan_now
from flows.plan import Plan, base_of
from flows.progress import tell_pause
from flows.scan import scan
from flows.settings import Settings


def outlook(settings: Settings) -> tuple[Plan, float | None]:
    """The plan of a night that would start now, and how long its merges will take, by what earlier ones took."""
    catalogue = _catalogue(settings.catalogue)
    planned = plan_now(settings, base_of(settings), catalogue, list(scan(settings, Hub(waiting=tell_pause), catalogue)))
    seconds = seconds_by_method(catalogue) if catalogue is not None else {}
    known = [seconds[job.recipe.method] for job in planned.jobs if job.recipe.method in seconds]
    return planned, len(planned.jobs) * fmean(known) if known else None


def _catalogue(url: str) -> Catalogue | None:
    """The catalogue, or None before the first night."""
    try:
        return open_catalogue(url)
    except CatalogueError as error:
        if error.code == "CATALOGUE_MISSING":
            return None
        raise
