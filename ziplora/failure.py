"""What the stages raise when work comes to no result; `header.Refusal` is for an input that is not used at all."""


class Failure(Exception):  # noqa: N818 - a failed item is an outcome with a row of its own, not an error of ours
    """Work without a result: a stable code, the observed fact in a sentence, and what to do next."""

    def __init__(self, code: str, fact: str, next_step: str) -> None:
        super().__init__(f"{code}  {fact} Next: {next_step}")
        self.code, self.fact, self.next_step = code, fact, next_step
