"""`python -m catalog.migrations URL` brings a catalogue to the schema that this code knows."""

import sys

from catalog.errors import CatalogueError
from catalog.schema import open_catalogue


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m catalog.migrations URL")
    try:
        engine = open_catalogue(sys.argv[1], migrate=True)
    except CatalogueError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{engine.url.render_as_string()} is up to date.\n")
    engine.dispose()


if __name__ == "__main__":
    main()
