"""A header is read whole or refused with its code; nothing that is not safetensors is taken for it."""

import contextlib
import io
import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from ziplora.header import (
    MAX_HEADER_BYTES,
    MAX_METADATA_CHARACTERS,
    MAX_NAME_CHARACTERS,
    MAX_TENSORS,
    Header,
    Refusal,
    StoredTensor,
    read_header,
)

GOOD = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}, {"format": "pt"})
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def opened(content: bytes) -> Header:
    return read_header(io.BytesIO(content), len(content))


def refused(content: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        opened(content)
    return caught.value


def file_of(header: str | Mapping[str, Any], payload: bytes = b"") -> bytes:
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(encoded).to_bytes(8, "little") + encoded + payload


def test_a_sound_header_is_read() -> None:
    header = opened(GOOD)
    assert header.tensors == {"a": StoredTensor("F32", (2, 3)), "b": StoredTensor("F16", (4,))}
    assert header.metadata == {"format": "pt"}


def test_only_the_header_is_read() -> None:
    length = 8 + int.from_bytes(GOOD[:8], "little")
    stream = io.BytesIO(save({"a": torch.ones(1000, 1000)}))
    read_header(stream, len(stream.getvalue()))
    assert stream.tell() <= max(length, 512)


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_a_file_cut_anywhere_is_truncated(cut: int) -> None:
    refusal = refused(GOOD[:cut])
    assert refusal.code == "FILE_TRUNCATED"
    assert "have" in refusal.fact


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle() -> None:
    header = json.dumps({"a": F32})
    content = file_of(header.ljust(0x0280), bytes(4))
    assert content.startswith(b"\x80\x02")
    assert opened(content).tensors.keys() == {"a"}
    assert {refused(content[:cut]).code for cut in range(1, len(content))} == {"FILE_TRUNCATED"}


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        (b"", "FILE_EMPTY", "no bytes"),
        (b"<!DOCTYPE html><html>sign in</html>", "NOT_SAFETENSORS", "HTML page"),
        (b"\n  <html lang='en'>", "NOT_SAFETENSORS", "HTML page"),
        (b"<?xml v{rsion", "NOT_SAFETENSORS", "HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64,
            "NOT_SAFETENSORS",
            "pointer to sha256 a",
        ),
        (b"Entry not found", "NOT_SAFETENSORS", "starts with b'Entry not'"),
        (b"hello", "NOT_SAFETENSORS", "starts with"),
        (b"PK\x03\x04" + bytes(40), "PICKLE_REFUSED", "not opened"),
        (b"\x80\x02}q\x00.", "PICKLE_REFUSED", "not opened"),
        (b"\x80\x04\x95" + bytes(40), "PICKLE_REFUSED", "not opened"),
        (file_of({}), "NO_TENSORS", "no tensors"),
        (file_of({"__metadata__": {"format": "pt"}}), "NO_TENSORS", "no tensors"),
        (file_of('{"a": 1, "a": 2}'), "DUPLICATE_KEY", "'a' twice"),
        (file_of('{"__metadata__": {"x": "1", "x": "2"}}'), "DUPLICATE_KEY", "'x' twice"),
        (file_of("{not json}"), "BAD_LAYOUT", "not JSON"),
        (file_of('{"a":' + "[" * 100_000), "BAD_LAYOUT", "not JSON"),
        (file_of('{"a": ' + "9" * 5000 + "}"), "BAD_LAYOUT", "not JSON"),
        (file_of({"__metadata__": {"steps": 3}, "a": F32}, bytes(4)), "BAD_LAYOUT", "metadata"),
        (file_of('{"__metadata__": {"x": "\\ud800"}}'), "BAD_LAYOUT", "half a character"),
        (file_of({"a": [1]}), "BAD_LAYOUT", "not described"),
        (file_of({"a": F32 | {"shape": [True]}}, bytes(4)), "BAD_LAYOUT", "wrong kind"),
        (file_of({"a": F32 | {"shape": [-1]}}, bytes(4)), "BAD_LAYOUT", "wrong kind"),
        (file_of({"a": F32 | {"shape": [2]}}, bytes(4)), "BAD_LAYOUT", "does not fill"),
        (file_of({"a": F32 | {"shape": [1 << 62, 1 << 62]}}, bytes(4)), "BAD_LAYOUT", "does not fill"),
        (file_of({"a": F32 | {"shape": [0], "data_offsets": [0, 0]}}), "BAD_LAYOUT", "does not fill"),
        (file_of({"a": F32, "b": F32}, bytes(4)), "BAD_LAYOUT", "overlaps"),
        (file_of({"a": F32 | {"data_offsets": [4, 8]}}, bytes(8)), "BAD_LAYOUT", "unused bytes"),
        (file_of({"a": F32}, bytes(5)), "BAD_LAYOUT", "1 bytes follow"),
        (file_of({"a": F32 | {"dtype": "F128"}}, bytes(4)), "UNSUPPORTED_DTYPE", "'F128'"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, code: str, fact: str) -> None:
    refusal = refused(content)
    assert refusal.code == code
    assert fact in refusal.fact
    assert str(refusal) == f"{code}  {refusal.fact} Next: {refusal.next_step}"


def many(count: int) -> bytes:
    tensors = {str(number): F32 | {"data_offsets": [4 * number, 4 * number + 4]} for number in range(count)}
    return file_of(tensors, bytes(4 * count))


def named(characters: int) -> bytes:
    return file_of({"n" * characters: F32}, bytes(4))


def noted(characters: int) -> bytes:
    return file_of({"__metadata__": {"k": "v" * (characters - 1)}, "a": F32}, bytes(4))


def padded(length: int) -> bytes:
    return file_of(json.dumps({"a": F32}).ljust(length), bytes(4))


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (many, MAX_TENSORS),
        (named, MAX_NAME_CHARACTERS),
        (noted, MAX_METADATA_CHARACTERS),
        (padded, MAX_HEADER_BYTES),
    ],
)
def test_a_header_may_reach_a_cap_but_not_pass_it(content: Any, limit: int) -> None:
    assert opened(content(limit)).tensors
    assert refused(content(limit + 1)).code == "HEADER_TOO_BIG"


def test_a_bomb_is_refused_before_it_costs_memory() -> None:
    content = many(300_000)
    tracemalloc.start()
    assert refused(content).code == "HEADER_TOO_BIG"
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < len(content) / 20


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_what_we_accept_the_library_reads_alike(place: int, change: bytes) -> None:
    content = GOOD[:place] + change + GOOD[place + len(change) :]
    try:
        header = opened(content)
    except Refusal:
        return
    try:
        tensors = load(content)
    except SafetensorError as error:
        pytest.fail(f"only the library refuses it: {error}")
    assert {name: stored.shape for name, stored in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(Refusal):
        assert opened(content).tensors
