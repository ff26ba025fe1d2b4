"""How much of the subject, of the style and of the text is in a merge's pictures; the only door to transformers.

A score is a cosine between embeddings. Its id names the metric, the encoder with the hash of its weights, the
preprocessing and the kind of reference pictures: scores with different ids never share a ranking.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .failure import Failure
from .recipe import PreviewResult, References, ScoreRow, canonical_json, content_id, sha256_of
from .store import Store, write_text

Metric = Literal["clip-t", "clip-i", "dino"]

_EMBEDDED_AT_ONCE = 16
_SCORES = "scores.json"


@dataclass(frozen=True)
class ScorerSpec:
    """A scorer to load."""

    metric: Metric
    """clip-t: picture and prompt; clip-i: picture and style's references; dino: picture and subject's references."""
    encoder: str
    """What people call it, such as openai/clip-vit-large-patch14."""
    source: str | Path | None = None
    """Its folder; without one, `encoder` is its id on the Hub."""
    revision: str | None = None


class Scorer:
    """A frozen encoder of pictures, and of texts if it is a whole CLIP model."""

    def __init__(
        self, spec: ScorerSpec, model: Any, processor: Any, tokenizer: Any, absent: frozenset[str], device: torch.device
    ) -> None:
        self.metric: Metric = spec.metric
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor, self._tokenizer, self._device = processor, tokenizer, device
        # DINO's files have no pooler: transformers makes one up, by chance, and no score looks at it.
        weights = _weights_hash({name: part for name, part in model.state_dict().items() if name not in absent})
        seen = hashlib.sha256(canonical_json(_plain(processor.to_dict())).encode()).hexdigest()
        self.encoder_id = f"{spec.metric}:{spec.encoder}@{weights[:12]}:{seen[:8]}"

    @torch.no_grad()
    def embed_pictures(self, paths: Sequence[Path]) -> Float[Tensor, "count width"]:
        """Unit vectors of picture files, on the CPU."""
        parts = []
        for start in range(0, len(paths), _EMBEDDED_AT_ONCE):
            pictures = [_opened(path) for path in paths[start : start + _EMBEDDED_AT_ONCE]]
            pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"].to(self._device)
            parts.append(self._picture_features(pixels).cpu())
        return F.normalize(torch.cat(parts).double(), dim=-1)

    def _picture_features(self, pixels: Tensor) -> Tensor:
        if self.metric == "dino":  # the class token
            features: Tensor = self._model(pixel_values=pixels).last_hidden_state[:, 0]
        elif hasattr(self._model, "get_image_features"):
            features = _embedding(self._model.get_image_features(pixel_values=pixels))
        else:
            features = self._model(pixel_values=pixels).image_embeds
        return features

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "count width"]:
        """Unit vectors of texts, on the CPU."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self._device)
        features = _embedding(self._model.get_text_features(**tokens))
        return F.normalize(features.cpu().double(), dim=-1)


def _embedding(output: Any) -> Tensor:
    """transformers before 5 gives the tensor itself."""
    embedding: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedding


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _weights_hash(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A processor's settings without what names its class, which differs between versions of the same processing."""
    kept = {name: value for name, value in settings.items() if not name.endswith(("_type", "_class"))}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def load_scorer(spec: ScorerSpec, device: str = "cpu") -> Scorer:
    """An encoder in single precision, from its folder or the Hub by the same code."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoTokenizer,
        CLIPModel,
        CLIPVisionModelWithProjection,
    )

    source = spec.source or spec.encoder
    if spec.source is not None and not (Path(spec.source) / "config.json").is_file():
        _missing(spec, f"there is no config.json in {spec.source}")
    try:
        kind = AutoConfig.from_pretrained(source, revision=spec.revision).model_type
        if spec.metric != "dino" and kind not in ("clip", "clip_vision_model"):
            _missing(spec, f"it is a {kind} model, and {spec.metric} needs CLIP's")
        if spec.metric == "clip-t" and kind != "clip":
            _missing(spec, "it reads no text, which clip-t needs")
        classes: dict[str, Any] = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
        model, loading = classes.get(kind, AutoModel).from_pretrained(
            source, revision=spec.revision, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source, revision=spec.revision, backend="pil"
        )
        reads_text = spec.metric == "clip-t"
        tokenizer = AutoTokenizer.from_pretrained(source, revision=spec.revision) if reads_text else None
    except (OSError, ValueError) as error:
        _missing(spec, str(error).strip().split("\n")[0].rstrip("."))
    absent = frozenset(loading["missing_keys"])
    needed = sorted(name for name in absent if not name.startswith("pooler."))
    if needed:
        _missing(spec, f"{len(needed)} of its weights are not in its file, such as {needed[0]}")
    return Scorer(spec, model, processor, tokenizer, absent, torch.device(device))


def _missing(spec: ScorerSpec, fact: str) -> NoReturn:
    raise Failure(
        "ENCODER_MISSING",
        f"Encoder {spec.encoder} cannot be used: {fact}.",
        "check its name and the network, or give its folder.",
    )


@dataclass(frozen=True)
class Evidence:
    """All pictures that the scores of one merge rest on."""

    merge: PreviewResult
    base: PreviewResult
    """The base alone on the same prompts and seeds."""
    subject: PreviewResult
    """The subject LoRA alone, in the surroundings of the merge."""
    style: PreviewResult
    """The style LoRA alone on its own prompt."""
    subject_references: References
    style_references: References


def score_merge(merge_id: str, evidence: Evidence, scorers: Sequence[Scorer], store: Store) -> tuple[ScoreRow, ...]:
    """A row for every picture and scorer, from the store or computed and put there."""
    path = store.merge(merge_id) / _SCORES
    held = _held(path)
    rows: list[ScoreRow] = []
    for scorer in scorers:
        comparison = _comparison(scorer, evidence)
        wanted = [(comparison.scorer_id, picture.prompt, picture.seed) for picture in evidence.merge.pictures]
        known = [held[key] for key in wanted if key in held and held[key].evidence_sha256 == comparison.sha256]
        rows += known if len(known) == len(wanted) else _score(scorer, comparison)
    chosen = {row.scorer_id for row in rows}
    others = [row for row in held.values() if row.scorer_id not in chosen]
    text = json.dumps([asdict(row) for row in (*rows, *others)], indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text)
    return tuple(rows)


def _held(path: Path) -> dict[tuple[str, str, int], ScoreRow]:
    try:
        rows = [ScoreRow(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {(row.scorer_id, row.prompt, row.seed): row for row in rows}


@dataclass(frozen=True)
class _Comparison:
    """What one scorer looks at."""

    scorer_id: str
    merge: PreviewResult
    base: PreviewResult
    alone: tuple[PreviewResult, ...]
    """What the ceiling is the mean of."""
    references: References | None

    @property
    def sha256(self) -> str:
        """Of all pictures in it, with the prompts that they were drawn of."""
        shown = [
            [(picture.prompt, sha256_of(result.folder / picture.file)) for picture in result.pictures]
            for result in (self.merge, self.base, *self.alone)
        ]
        return content_id([shown, self.references.sha256 if self.references else None])


def _comparison(scorer: Scorer, evidence: Evidence) -> _Comparison:
    alone: tuple[PreviewResult, ...]
    references: References | None
    match scorer.metric:
        case "clip-t":
            alone, references = (evidence.subject, evidence.style), None
        case "clip-i":
            alone, references = (evidence.style,), evidence.style_references
        case "dino":
            alone, references = (evidence.subject,), evidence.subject_references
    scorer_id = f"{scorer.encoder_id}:{references.kind}" if references else scorer.encoder_id
    return _Comparison(scorer_id, evidence.merge, evidence.base, alone, references)


def _score(scorer: Scorer, comparison: _Comparison) -> list[ScoreRow]:
    references = comparison.references
    shown: tuple[tuple[PreviewResult, ...], ...] = ((comparison.merge,), (comparison.base,), comparison.alone)
    if references is None:
        values, floors, ceilings = (similarity_to_prompts(scorer, *results) for results in shown)
    else:
        near = scorer.embed_pictures(references.paths)
        values, floors, ceilings = (
            (scorer.embed_pictures([path for result in results for path in result.paths]) @ near.T).mean(1)
            for results in shown
        )
    if not all(part.isfinite().all() for part in (values, floors, ceilings)):
        fact = f"Scorer {comparison.scorer_id} gives numbers that are NaN or infinite."
        raise Failure("SCORE_INVALID", fact, "check the encoder's files.")
    floor, ceiling, digest = float(floors.mean()), float(ceilings.mean()), comparison.sha256
    compared_with = references.sha256 if references else None
    return [
        ScoreRow(comparison.scorer_id, picture.prompt, picture.seed, value, floor, ceiling, compared_with, digest)
        for picture, value in zip(comparison.merge.pictures, values.tolist(), strict=True)
    ]


def similarity_to_prompts(scorer: Scorer, *shown: PreviewResult) -> Float[Tensor, " count"]:
    """The cosine of each picture with its own prompt."""
    paths = [path for result in shown for path in result.paths]
    prompts = [picture.prompt for result in shown for picture in result.pictures]
    texts = list(dict.fromkeys(prompts))
    text_of = scorer.embed_texts(texts)
    rows = torch.tensor([texts.index(prompt) for prompt in prompts])
    return (scorer.embed_pictures(paths) * text_of[rows]).sum(1)


def position(value: float, floor: float, ceiling: float) -> float:
    """Where a score lies: 0 at the floor, 1 at the ceiling."""
    return (value - floor) / (ceiling - floor)


def harmonic_mean(subject_position: float, style_position: float) -> float:
    """One number for both, each cut to 0..1: a merge without one of them has 0."""
    subject, style = (min(1.0, max(0.0, place)) for place in (subject_position, style_position))
    return 2 * subject * style / (subject + style) if subject and style else 0.0
