"""The tiny world's encoders: a CLIP model, a subject encoder that ignores style, a style encoder that ignores subjects.

They are the classes and folders that the real ones have (`CLIPModel` with processor and tokenizer, `Dinov2Model`,
`CLIPVisionModelWithProjection`), so that a scorer loads them by path as it loads the real ones by id.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from .autoencoder import to_pm1
from .dataset import render_all, sample_scenes
from .figures import OBJECTS, STRANGERS, SUBJECTS
from .judge import spoil
from .text import CONTEXT_LENGTH, save_tokenizer, token_ids
from .training import Schedule, Trained, fit
from .world import SIZE, STYLES, Scene, caption

_MEAN, _DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_WIDTH = 128
_SPOILT_SHARE = 0.5
"""Of the pictures that subject and style encoder learn from: a model's are imperfect, references are not."""
_PATCH = 8


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP model for 64 × 64 pictures and the tokenizer's words."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=_vision(4).to_dict(), projection_dim=96))


def _vision(layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=_PATCH,
        projection_dim=96,
    )


def build_subject_encoder() -> Dinov2Model:
    """An untrained DINOv2 model; its class token is the picture's embedding."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=3,
            image_size=SIZE,
            patch_size=_PATCH,
        )
    )


def build_style_encoder() -> CLIPVisionModelWithProjection:
    """An untrained CLIP image tower, the class of the CSD style encoder."""
    return CLIPVisionModelWithProjection(_vision(3))


def contrast_groups(
    embeddings: Float[Tensor, "count width"], groups: Int[Tensor, " count"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Supervised contrastive loss (arXiv 2004.11362): pictures of one group together, all others apart."""
    unit = F.normalize(embeddings, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log_share = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=-1)
    together = (groups[:, None] == groups[None, :]) & ~itself
    return -(log_share.masked_fill(~together, 0).sum(1) / together.sum(1).clamp(min=1)).mean()


def train_clip(
    tokenizer: CLIPTokenizer, work: Path, steps: int, count: int, seed: int, device: torch.device
) -> tuple[CLIPModel, Trained]:
    """CLIP over captions of everything: like the real one it knows subjects and styles that the base does not."""
    scenes = sample_scenes(count, seed + 40, held_out=False, figures=(*OBJECTS, *SUBJECTS), styles=tuple(STYLES))
    pictures = render_all(scenes, work)
    ids = token_ids(tokenizer, [caption(scene) for scene in scenes]).to(device)
    torch.manual_seed(seed + 40)
    clip = build_clip(tokenizer)
    nn.Module.to(clip, device)
    batch = 128

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(count, (batch,), generator=generator)
        pixels = spoil(to_pm1(pictures[rows.numpy()], device), generator)
        output = clip(input_ids=ids[rows.to(device)], pixel_values=pixels)
        # Two pictures of one caption are both right answers, so they must not repel each other.
        same = (ids[rows][:, None] == ids[rows][None, :]).all(-1).to(device)
        target = same.float() / same.sum(1, keepdim=True)
        logits = output.logits_per_text
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    schedule = Schedule(steps=steps, learning_rate=1e-3, warmup_steps=min(100, steps), flat_share=0.3)
    return clip, fit("clip", clip, loss_of_step, schedule, work, seed, device)


def _train_contrast(
    name: str,
    encoder: nn.Module,
    embed: Callable[[Tensor], Tensor],
    group_of: Callable[[Scene], str],
    work: Path,
    steps: int,
    count: int,
    seed: int,
    device: torch.device,
) -> Trained:
    """Train an encoder to put the pictures of one group together; none of them shows one of the eight subjects.

    Plain objects are the hardest to tell apart in a style that breaks them up, so they are seen four times as often.
    """
    figures = (*(4 * tuple(OBJECTS)), *STRANGERS)
    scenes = sample_scenes(count, seed, held_out=False, figures=figures, styles=tuple(STYLES))
    pictures = render_all(scenes, work)
    groups = [group_of(scene) for scene in scenes]
    names = sorted(set(groups))
    numbers = torch.tensor([names.index(group) for group in groups])
    members = [(numbers == number).nonzero().flatten() for number in range(len(names))]
    sizes = torch.tensor([float(len(rows)) for rows in members])
    encoder.to(device)
    groups_a_batch, pictures_a_group = min(32, len(names)), 4

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        chosen = torch.multinomial(sizes, groups_a_batch, generator=generator).tolist()
        rows = torch.cat(
            [members[c][torch.randint(len(members[c]), (pictures_a_group,), generator=generator)] for c in chosen]
        )
        clean = to_pm1(pictures[rows.numpy()], device)
        spoilt = (torch.rand(len(rows), generator=generator) < _SPOILT_SHARE).to(device)
        pixels = torch.where(spoilt[:, None, None, None], spoil(clean, generator), clean)
        return contrast_groups(embed(pixels), numbers[rows].to(device))

    schedule = Schedule(steps=steps, learning_rate=1e-3, warmup_steps=min(100, steps), flat_share=0.3)
    return fit(name, encoder, loss_of_step, schedule, work, seed, device)


def train_subject_encoder(
    work: Path, steps: int, count: int, seed: int, device: torch.device
) -> tuple[Dinov2Model, Trained]:
    """What is drawn, whatever the style: pictures of one figure in its own colours together."""
    torch.manual_seed(seed + 50)
    encoder = build_subject_encoder()
    trained = _train_contrast(
        "subject",
        encoder,
        lambda pixels: encoder(pixels).pooler_output,
        lambda scene: f"{scene.figure} {scene.colour}",
        work,
        steps,
        count,
        seed + 50,
        device,
    )
    return encoder, trained


def train_style_encoder(
    work: Path, steps: int, count: int, seed: int, device: torch.device
) -> tuple[CLIPVisionModelWithProjection, Trained]:
    """How it is drawn, whatever is drawn: pictures of one style together."""
    torch.manual_seed(seed + 60)
    encoder = build_style_encoder()
    trained = _train_contrast(
        "style",
        encoder,
        lambda pixels: encoder(pixels).image_embeds,
        lambda scene: scene.style,
        work,
        steps,
        count,
        seed + 60,
        device,
    )
    return encoder, trained


def save_encoders(
    folder: Path,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    subject_encoder: Dinov2Model,
    style_encoder: CLIPVisionModelWithProjection,
) -> None:
    """Write the encoders as fp16 folders `clip`, `subject`, `style`, each with its image processor."""
    sides = {"height": SIZE, "width": SIZE}
    square: dict[str, Any] = {"size": sides, "crop_size": sides, "image_mean": _MEAN, "image_std": _DEVIATION}
    for model in (clip, subject_encoder, style_encoder):
        nn.Module.to(model, torch.float16)
    clip.save_pretrained(folder / "clip")
    save_tokenizer(tokenizer, folder / "clip")
    CLIPImageProcessorPil(**square).save_pretrained(folder / "clip")
    subject_encoder.save_pretrained(folder / "subject")
    BitImageProcessorPil(**square).save_pretrained(folder / "subject")
    style_encoder.save_pretrained(folder / "style")
    CLIPImageProcessorPil(**square).save_pretrained(folder / "style")
