"""What goes wrong with a catalogue, in words for the person who can mend it."""


class CatalogueError(Exception):
    """A stable code and one sentence: what was found, where, and what to do next."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
