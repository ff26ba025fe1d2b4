"""A safetensors header, read and checked before any tensor is: with caps, and stricter than the library.

Two readers must never see two different files in one, and a file of a stranger must not cost memory or time.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

MAX_HEADER_BYTES = 10_000_000
MAX_TENSORS = 20_000
MAX_METADATA_CHARACTERS = 1_000_000
MAX_NAME_CHARACTERS = 500

_BITS = (
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
    | dict.fromkeys(("U32", "I32", "F32"), 32)
    | dict.fromkeys(("U64", "I64", "F64", "C64"), 64)
)
_ENTRY = frozenset(("dtype", "shape", "data_offsets"))
_FETCH = "download the file again; if it is the same, ask the author for a sound one."
_ASK_AUTHOR = "ask the author for a file written by the safetensors library."


class Refusal(Exception):  # noqa: N818 - a refused input is an outcome with a row of its own, not an error of ours
    """An input that is not used: a stable code, the observed fact in a sentence, and what to do next.

    Who holds the file knows by which name people know it, and puts that in front.
    """

    def __init__(self, code: str, fact: str, next_step: str) -> None:
        super().__init__(f"{code}  {fact} Next: {next_step}")
        self.code, self.fact, self.next_step = code, fact, next_step


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the header describes it."""

    dtype: str
    """In safetensors' spelling, such as F16."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a file says about itself, all of it checked against its size."""

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def quoted(name: str) -> str:
    """A name from a file, made safe and short enough to print."""
    return ascii(name if len(name) <= 120 else f"{name[:120]}…")


def read_header(stream: BinaryIO, size_bytes: int) -> Header:
    """The header of a file of `size_bytes`, or a refusal; reads nothing past the header."""
    start = stream.read(min(size_bytes, 512))
    if size_bytes == 0:
        raise Refusal("FILE_EMPTY", "The file has no bytes.", _FETCH)
    length = int.from_bytes(start[:8], "little")
    # Nothing but the brace is sure: 80 02 00… is a header of 640 bytes as well as the start of a pickle.
    if start[8:9] != b"{" or (length > size_bytes and length > 1 << 40):
        _refuse_other_formats(start)
    if len(start) < 9:
        raise Refusal("FILE_TRUNCATED", f"Expected at least 9 bytes, have {size_bytes}.", _FETCH)
    if length > MAX_HEADER_BYTES:
        _too_big(f"The header has {length:,} bytes", f"{MAX_HEADER_BYTES:,}")
    if 8 + length > size_bytes:
        raise Refusal("FILE_TRUNCATED", f"Expected at least {8 + length:,} bytes, have {size_bytes:,}.", _FETCH)
    encoded = (start + stream.read(max(0, 8 + length - len(start))))[8 : 8 + length]
    return _checked(_parsed(encoded), size_bytes - 8 - length)


def _refuse_other_formats(start: bytes) -> None:
    """Say what a file is that cannot be safetensors; return if it may be the beginning of one."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    pointer = re.match(rb"version https://git-lfs\.github\.com/spec/v1\s+oid sha256:([0-9a-f]{64})", start)
    if pointer:
        fact = f"This is a Git LFS pointer to sha256 {pointer[1].decode()}, not the file itself."
        raise Refusal("NOT_SAFETENSORS", fact, "fetch the file with `git lfs pull` or from its download link.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        fact = "This is an HTML page, perhaps a login or error page, saved under the file's name."
        raise Refusal("NOT_SAFETENSORS", fact, "download the file again, signed in if it is gated.")
    if re.match(rb"\x80[\x02-\x05][^\x00]", start) or start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        refuse_pickle("This is a pickle or a PyTorch archive, which can run code when opened")
    if len(start) >= 9 or any(start[4:8]):
        fact = f"The file starts with {start[:9]!r}, not with the length of a header and a brace."
        raise Refusal("NOT_SAFETENSORS", fact, _FETCH)


def refuse_pickle(fact: str) -> NoReturn:
    """Refuse without a look inside."""
    raise Refusal("PICKLE_REFUSED", f"{fact}; it was not opened.", "ask the author for a safetensors file.")


def _bad_layout(fact: str) -> NoReturn:
    raise Refusal("BAD_LAYOUT", fact, _ASK_AUTHOR)


def _too_big(fact: str, limit: str) -> NoReturn:
    raise Refusal("HEADER_TOO_BIG", f"{fact}, more than the {limit} that any known LoRA needs.", _ASK_AUTHOR)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        fact = f"The header names {quoted(twice)} twice, so two readers can see two different tensors."
        raise Refusal("DUPLICATE_KEY", fact, _ASK_AUTHOR)
    return found


def _parsed(encoded: bytes) -> dict[str, Any]:
    try:
        header = json.loads(encoded.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        _bad_layout(f"The header is not JSON: {type(error).__name__}.")
    if not isinstance(header, dict):
        _bad_layout("The header is not a JSON object.")
    return header


def _checked(header: dict[str, Any], payload_bytes: int) -> Header:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _bad_layout("The metadata is not a map from text to text.")
    try:
        "".join([*header, *metadata, *metadata.values()]).encode()
    except UnicodeEncodeError:
        _bad_layout("A name or the metadata holds half a character, which is no text.")
    characters = sum(len(key) + len(value) for key, value in metadata.items())
    if characters > MAX_METADATA_CHARACTERS:
        _too_big(f"The metadata has {characters:,} characters", f"{MAX_METADATA_CHARACTERS:,}")
    if len(header) > MAX_TENSORS:
        _too_big(f"The header names {len(header):,} tensors", f"{MAX_TENSORS:,}")
    if not header:
        raise Refusal("NO_TENSORS", "The file is sound but holds no tensors.", _FETCH)
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        tensors[name], begin, end = _checked_tensor(name, entry)
        spans.append((begin, end, name))
    _check_spans(sorted(spans), payload_bytes)
    return Header(tensors, metadata)


def _whole_numbers(value: object, count: int | None = None) -> bool:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        return False
    for number in value:  # noqa: SIM110 - all(…) takes twice as long, and a file has thousands of these
        if type(number) is not int or not 0 <= number < 1 << 63:
            return False
    return True


def _checked_tensor(name: str, entry: object) -> tuple[StoredTensor, int, int]:
    """The tensor with the begin and end of its bytes."""
    if len(name) > MAX_NAME_CHARACTERS:
        _too_big(f"A tensor's name has {len(name):,} characters", str(MAX_NAME_CHARACTERS))
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        _bad_layout(f"Tensor {quoted(name)} is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(offsets, 2) or len(shape) > 8:
        _bad_layout(f"Tensor {quoted(name)} has a dtype, a shape or offsets of the wrong kind.")
    if dtype not in _BITS:
        fact = f"Tensor {quoted(name)} is of dtype {quoted(dtype)}, which we cannot read."
        raise Refusal("UNSUPPORTED_DTYPE", fact, "convert the file to float16.")
    begin, end = offsets
    if begin >= end or math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
        _bad_layout(f"Tensor {quoted(name)} of shape {shape} and dtype {dtype} does not fill bytes {begin} to {end}.")
    return StoredTensor(dtype, tuple(shape)), begin, end


def _check_spans(spans: list[tuple[int, int, str]], payload_bytes: int) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    reached = 0
    for begin, end, name in spans:
        if begin != reached:
            trouble = "overlaps the tensor before it" if begin < reached else "leaves unused bytes before it"
            _bad_layout(f"Tensor {quoted(name)} {trouble}: it begins at byte {begin}, not at {reached}.")
        reached = end
    if reached > payload_bytes:
        fact = f"Expected {reached:,} bytes of tensors, have {payload_bytes:,}."
        raise Refusal("FILE_TRUNCATED", fact, _FETCH)
    if reached < payload_bytes:
        _bad_layout(f"{payload_bytes - reached:,} bytes follow the last tensor.")
