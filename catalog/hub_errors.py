"""What goes wrong with the Hub, as the client says it in many ways, in our codes and sentences."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason

AGAIN = "nothing; the next night tries again."
PASSING = frozenset({"HUB_BUSY", "HUB_UNREACHABLE"})
"""Codes that say nothing of what was asked about: the next night asks again."""
UNANSWERED = PASSING | {"AUTH"}
"""The same, and that of a token that is refused, whatever was asked about."""


class CameShort(httpx.TransportError):
    """Fewer bytes than the Hub promises."""


@contextmanager
def in_plain_words(where: str, revision: str = "", file_name: str = "") -> Iterator[None]:
    """Raise what the client says as CatalogueError, or Refused where it is about one repository or file."""
    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError, httpx.RequestError) as error:
        said: BaseException = error
        while isinstance(said, (LocalEntryNotFoundError, RuntimeError)) and said.__cause__ is not None:
            said = said.__cause__  # the client wraps what happened to a file
        if isinstance(said, HfHubHTTPError):
            raise _answered(said, where, revision, file_name) from error
        if isinstance(said, CameShort):
            fact = f"{where}@{revision[:7]}/{file_name} came shorter than the Hub promises, again and again."
            raise Refused(Reason("FILE_TRUNCATED", fact, AGAIN)) from error
        if isinstance(said, (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError)):
            raise _unreachable(said) from error
        if isinstance(said, httpx.RequestError):
            fact = f"The Hub's answer for {where} cannot be used ({type(said).__name__})."
            raise Refused(Reason("HUB_REFUSED", fact, "see its page in a browser.")) from error
        raise
    except json.JSONDecodeError as error:
        raise _unreachable(error) from error
    except HFValidationError as error:
        fact = f"The Hub takes no repository of the name {where!a}."
        step = "use up to 96 letters, digits and single - _ . between them."
        raise Refused(Reason("NAME_INVALID", fact, step)) from error


def _unreachable(error: BaseException) -> CatalogueError:
    fact = f"The Hub cannot be reached ({type(error).__name__})."
    return CatalogueError("HUB_UNREACHABLE", f"{fact} Check the network; what is here already can be merged without.")


def _answered(error: HfHubHTTPError, where: str, revision: str, file_name: str) -> CatalogueError:
    """What an answer of the Hub means; gated comes before missing, whose kind it is to the client."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        step = f"ask for access at https://huggingface.co/{where}, then run again."
        return Refused(Reason("GATED", f"The author of {where} lets people in one by one.", step))
    if isinstance(error, DisabledRepoError):
        return Refused(Reason("GONE", f"The Hub has disabled {where}.", "leave it out."))
    if isinstance(error, RepositoryNotFoundError):
        if status == 404:
            return Refused(Reason("GONE", f"The Hub has no repository {where} any more.", "leave it out."))
        step = "check the name; if it is private, set HF_TOKEN to a token that may read it."
        return Refused(Reason("HIDDEN", f"There is no {where} that this token may see.", step))
    if isinstance(error, RevisionNotFoundError):
        return Refused(Reason("COMMIT_GONE", f"{where} has no revision {revision} any more.", "scan again."))
    if isinstance(error, RemoteEntryNotFoundError):
        fact = f"{where}@{revision[:7]} has no file {file_name!a}."
        return Refused(Reason("FILE_MISSING", fact, "name one of the repository's files."))
    if status == 401:
        return CatalogueError("AUTH", "The Hub does not know the token in HF_TOKEN. Set another, or none.")
    if status == 403:
        return Refused(Reason("FORBIDDEN", f"The token has no right to do this with {where}.", "use another."))
    if status in (409, 412):
        return Refused(Reason("PARENT_MOVED", f"Somebody else changed {where} at the same moment.", AGAIN))
    if status == 429 or status >= 500:
        return CatalogueError("HUB_BUSY", f"The Hub answers {status} again and again. Run again later.")
    return Refused(Reason("HUB_REFUSED", f"The Hub answers {status} for {where}.", "see its page in a browser."))
