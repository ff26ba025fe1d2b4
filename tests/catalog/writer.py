"""`python -m tests.catalog.writer URL NAME COUNT` records failed merges, and prints each when it is acknowledged."""

import sys

from catalog import record
from catalog.schema import open_catalogue

from .samples import DIVERGED, DOG, NEON, NIGHT, NOON, merge


def main(url: str, name: str, count: int) -> None:
    engine = open_catalogue(url)
    for number in range(count):
        merged = merge(DOG, NEON, f"{name}-{number}")
        record.record_failed(engine, merged, DIVERGED, NIGHT, NOON)
        sys.stdout.write(f"{merged.merge_id}\n")
        sys.stdout.flush()
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
