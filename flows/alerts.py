"""What operators hear of: an event for each night that ended, which automations match, and its report as a message."""

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger
from prefect.blocks.core import Block
from prefect.events import emit_event

from catalog.facts import Reason

NIGHT_ENDED = "ziplora.night.ended"
SOURCES, MERGES = "ziplora.sources", "ziplora.merges"
"""Labels of that event: `as before` or the code of what speaks against the sources; `done` or `failed`."""


def night_ended(night_id: str, doubtful: Reason | None, summary: dict[str, object], *, failed: bool) -> None:
    """Tell the server's automations what became of a night."""
    resource = {
        "prefect.resource.id": f"ziplora.night.{night_id}",
        "prefect.resource.name": night_id,
        SOURCES: "as before" if doubtful is None else doubtful.code,
        MERGES: "failed" if failed else "done",
    }
    emit_event(NIGHT_ENDED, resource=resource, payload=summary)


def send_report(notifier: str, headline: str, counts: Sequence[tuple[str, str, int]], gallery: str) -> None:
    """Have a notification block of the server say what a night did: a block that fails is no reason to fail."""
    lines = [" ".join(map(str, (count, what, code))).strip() for what, code, count in counts]
    try:
        block: Any = Block.load(notifier)
        with block.raise_on_failure():
            block.notify("\n".join([headline, "", *lines, "", gallery]), subject=f"ziplora: {headline}")
    except Exception as error:  # noqa: BLE001 - blocks are anybody's code, and their errors hold addresses with secrets
        get_run_logger().warning("%s did not take the report of the night: %s.", notifier, type(error).__name__)
