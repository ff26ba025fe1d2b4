"""What goes wrong with a catalogue or a source, in words for the person who can mend it."""

from catalog.facts import Reason


class CatalogueError(Exception):
    """A stable code and one sentence: what was found, where, and what to do next."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code


class Refused(CatalogueError):  # noqa: N818 - an outcome with a row of its own, not an error of ours
    """One file, repository or merge cannot be used or passed on; the others can. The reason is ready to be a row."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code, f"{reason.fact} Next: {reason.next_step}")
        self.reason = reason
