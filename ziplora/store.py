"""Where results lie in a store, and how they get there: under a temporary name first, then renamed."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


@dataclass(frozen=True)
class Store:
    """A local folder of results whose names are made from their content."""

    root: Path

    def calibration(self, calibration_id: str) -> Path:
        """The tensors of a calibration; its facts lie beside them as JSON."""
        return self.root / "calibrations" / f"{calibration_id}.safetensors"

    def adapter(self, sha256: str) -> Path:
        """The copy of an adapter that was fetched."""
        return self.root / "adapters" / sha256 / f"{sha256}.safetensors"

    def merge(self, merge_id: str) -> Path:
        """The folder of a merge."""
        return self.root / "merges" / merge_id

    def previews(self, merge_id: str) -> Path:
        """The folder of its pictures."""
        return self.merge(merge_id) / "previews"

    def single(self, single_id: str) -> Path:
        """The folder of pictures of one LoRA alone, or of the base alone."""
        return self.root / "singles" / single_id


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` when all went well, and gone when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, the same byte for byte each time; the library's order of metadata is chance."""
    content = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:end])}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as unfinished, unfinished.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.write(content[end:])
