"""What the licences of the Hub allow, and which licence a merge of two adapters carries.

Every licence in the table lets its files be passed on unchanged; what is not in it is unknown. It is an aid to a
decision and no legal advice. Where a doubt is left, the answer is no.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from catalog.facts import Reason

Kind = Literal["permissive", "rail", "non-commercial", "share-alike", "no-derivatives"]


@dataclass(frozen=True)
class Terms:
    """What one licence asks of whoever passes a merge on."""

    kind: Kind
    weight: int
    """Of two licences of one kind whose terms can be kept together, the heavier asks for all that the lighter does."""
    derivatives: bool = True
    commercial: bool = True
    share_alike: bool = False
    """A merge must carry this licence itself, with nothing added."""
    use_restrictions: bool = False
    """A list of forbidden uses has to be passed on."""


def _permissive(weight: int, *names: str) -> dict[str, Terms]:
    return dict.fromkeys(names, Terms("permissive", weight))


def _rail(weight: int, *names: str) -> dict[str, Terms]:
    return dict.fromkeys(names, Terms("rail", weight, use_restrictions=True))


def _share_alike(*names: str) -> dict[str, Terms]:
    return {name: Terms("share-alike", weight, share_alike=True) for weight, name in enumerate(names)}


_SHARE_ALIKE_NC = Terms("share-alike", 0, commercial=False, share_alike=True)
_NO_DERIVATIVES = Terms("no-derivatives", 0, derivatives=False)

TERMS: dict[str, Terms] = {
    **_permissive(0, "cc0-1.0", "unlicense", "wtfpl", "pddl"),
    **_permissive(1, "zlib", "postgresql", "bsl-1.0"),
    **_permissive(2, "mit", "isc", "ncsa", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear"),
    **_permissive(3, "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "etalab-2.0"),
    **_permissive(4, "apache-2.0", "ecl-2.0", "afl-3.0"),
    **_permissive(5, "cc-by-2.0", "cc-by-2.5"),
    **_permissive(6, "cc-by-3.0"),
    **_permissive(7, "cc-by-4.0"),
    # CreativeML's two licences and the short name share one list of forbidden uses.
    **_rail(0, "openrail"),
    **_rail(1, "openrail++"),
    **_rail(2, "creativeml-openrail-m"),
    # BigScience's and BigCode's lists are others: only with themselves, see _RAIL_FAMILY.
    **_rail(3, "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "bigcode-openrail-m"),
    **{f"cc-by-nc-{version}.0": Terms("non-commercial", version, commercial=False) for version in (2, 3, 4)},
    **{f"cc-by-nc-sa-{version}.0": replace(_SHARE_ALIKE_NC, weight=version) for version in (2, 3, 4)},
    **_share_alike("cc-by-sa-3.0", "cc-by-sa-4.0", "mpl-2.0", "lgpl-2.1", "lgpl", "lgpl-3.0"),
    **_share_alike("gpl-2.0", "gpl", "gpl-3.0", "agpl-3.0", "osl-3.0", "eupl-1.1", "eupl-1.2", "epl-1.0", "epl-2.0"),
    **_share_alike("ms-pl", "gfdl", "odbl", "cdla-sharing-1.0"),
    "cc-by-nd-4.0": _NO_DERIVATIVES,
    "cc-by-nc-nd-3.0": replace(_NO_DERIVATIVES, commercial=False),
    "cc-by-nc-nd-4.0": replace(_NO_DERIVATIVES, commercial=False),
}
"""Hub licence ids that are known, and what they ask."""

_RAIL_FAMILY = {"openrail", "openrail++", "creativeml-openrail-m"}

_TOGETHER = {
    # Each pair's own texts say that the first may be passed on under the second.
    ("cc-by-sa-3.0", "cc-by-sa-4.0"),
    ("cc-by-sa-4.0", "gpl-3.0"),
    ("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    ("cc-by-nc-sa-2.0", "cc-by-nc-sa-4.0"),
    ("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    ("lgpl-2.1", "gpl-3.0"),
    ("lgpl-3.0", "gpl-3.0"),
    ("lgpl-3.0", "agpl-3.0"),
    ("gpl-3.0", "agpl-3.0"),
    ("mpl-2.0", "gpl-3.0"),
    ("mpl-2.0", "agpl-3.0"),
    ("mpl-2.0", "lgpl-3.0"),
    ("eupl-1.1", "eupl-1.2"),
}

_PERMISSIVE_CONFLICTS = {
    # The Free Software Foundation's list: terms that these versions of the GPL do not let anybody add.
    ("apache-2.0", "gpl-2.0"),
    ("ecl-2.0", "gpl-2.0"),
    ("afl-3.0", "gpl-2.0"),
    ("afl-3.0", "gpl-3.0"),
    ("afl-3.0", "agpl-3.0"),
}

_ASK = "ask the author for a licence, or leave the adapter out."


def gate(licence: str | None) -> Reason | None:
    """Why an adapter under this licence may not be merged; None when it may."""
    terms = TERMS.get(licence or "")
    if terms is None:
        said = f"The licence is {licence!a}, which says nothing that we know" if licence else "No licence is given"
        return Reason("LICENCE_UNKNOWN", f"{said}.", f"{_ASK[:-1]}; merge_unknown_licences merges it, for you alone.")
    if not terms.derivatives:
        return Reason("LICENCE_NO_DERIVATIVES", f"{licence} forbids to pass on anything made from it.", _ASK)
    return None


def combine(subject: str | None, style: str | None, *, allow_unknown: bool = False) -> str | Reason | None:
    """The licence of a merge, the strictest of the two, or why there is none.

    With `allow_unknown`, None: a merge that nobody but its maker may have.
    """
    unknown = None
    for licence in (subject, style):
        trouble = gate(licence)
        if trouble is not None and trouble.code != "LICENCE_UNKNOWN":
            return trouble
        unknown = unknown or trouble
    if unknown is not None:
        return None if allow_unknown else unknown
    assert subject is not None
    assert style is not None
    return _strictest(subject, style) or _conflict(subject, style)


def merged_licences(known: Collection[str | None]) -> dict[tuple[str | None, str | None], str]:
    """What a merge carries, by the licences of subject and style: of those pairs that let others have it."""
    pairs = {(subject, style): combine(subject, style, allow_unknown=True) for subject in known for style in known}
    return {pair: licence for pair, licence in pairs.items() if isinstance(licence, str)}


def publication_gate(licence: str | None) -> Reason | None:
    """Why a merge under this licence may not leave this machine; None when it may."""
    trouble = gate(licence)
    return trouble and replace(trouble, next_step="nothing: the merge stays on this machine.")


def _conflict(subject: str, style: str) -> Reason:
    fact = f"{subject} of the subject and {style} of the style ask for terms that no one licence keeps."
    return Reason("LICENCE_CONFLICT", fact, "choose another partner, or ask an author for another licence.")


def _strictest(one: str, other: str) -> str | None:
    """The licence that keeps the terms of both; None when they contradict each other."""
    if one == other:
        return one
    lighter, heavier = sorted((one, other), key=lambda licence: (_KINDS.index(TERMS[licence].kind), licence))
    left, right = TERMS[lighter], TERMS[heavier]
    if left.kind == "permissive" != right.kind:
        return None if (lighter, heavier) in _PERMISSIVE_CONFLICTS else heavier
    if left.kind == right.kind == "share-alike":
        return next((pair[1] for pair in ((one, other), (other, one)) if pair in _TOGETHER), None)
    if left.kind == right.kind == "rail" and not {one, other} <= _RAIL_FAMILY:
        return None
    if left.kind == right.kind:
        return max(one, other, key=lambda licence: (TERMS[licence].weight, licence))
    if left.kind == "non-commercial" and right.share_alike and not right.commercial:
        return heavier
    return None


_KINDS: tuple[Kind, ...] = ("permissive", "rail", "non-commercial", "share-alike")
