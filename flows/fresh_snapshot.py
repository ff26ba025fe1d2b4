"""The snapshot of a night that goes on: whoever asks at two in the morning sees what was merged until then."""

import time
from pathlib import Path

from prefect import get_run_logger

from catalog.errors import CatalogueError
from catalog.schema import Catalogue
from catalog.snapshot import write_snapshot

_SHARE = 0.05
"""Of the time that a night takes, what writing snapshots may: that of a million merges takes minutes."""


class FreshSnapshot:
    """Writes the snapshot again after a batch, as far as that is cheap."""

    def __init__(self, catalogue: Catalogue, path: Path) -> None:
        self.catalogue, self.path = catalogue, path
        self._due = 0.0

    def renew(self) -> None:
        """Write it if the last writing was long enough ago; a night goes on without it."""
        began = time.monotonic()
        if began < self._due:
            return
        try:
            write_snapshot(self.catalogue, self.path)
        except (CatalogueError, OSError) as error:
            get_run_logger().warning("The snapshot stays as it is: %s", error)
        ended = time.monotonic()
        self._due = ended + (ended - began) / _SHARE
