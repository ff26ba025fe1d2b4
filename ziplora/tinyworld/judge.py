"""An independent judge: a small convolutional classifier of what is in a picture, used for measuring alone.

It takes no part in the pipeline. It is trained on rendered pictures that were spoiled (bent, smeared, tinted, noisy,
put through the autoencoder with noise on the latents), since the pictures it judges are never perfect.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .autoencoder import encode, to_pm1
from .dataset import Pictures, render_all, sample_scenes
from .figures import BACKGROUNDS, COLOURS, OBJECTS, SUBJECTS
from .training import Schedule, Trained, fit
from .world import STYLES, Scene

FIGURES = (*OBJECTS, *SUBJECTS)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "figure": FIGURES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "style": tuple(STYLES),
}
"""What the judge is asked of a picture, and the answers it may give."""

_IGNORED = -100


class Judge(nn.Module):
    """Logits of every question's answers for a batch of pictures in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        stages: list[nn.Module] = []
        for before, after in pairwise(widths):
            stages += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            if after > 32:
                stages += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*stages, nn.Flatten(), nn.Linear(128 * 16, 128), nn.SiLU())
        self.answers = nn.ModuleDict({question: nn.Linear(128, len(names)) for question, names in QUESTIONS.items()})

    def forward(self, image_pm1: Float[Tensor, "count 3 64 64"]) -> dict[str, Float[Tensor, "count answers"]]:
        features = self.trunk(image_pm1)
        return {question: layer(features) for question, layer in self.answers.items()}


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one picture."""

    figure: str
    colour: str
    background: str
    style: str


@torch.inference_mode()
def judge_pictures(judge: Judge, pictures: Pictures) -> list[Verdict]:
    """The likeliest answer to each question, picture by picture."""
    verdicts: list[Verdict] = []
    device = next(judge.parameters()).device
    for start in range(0, len(pictures), 128):
        logits = judge(to_pm1(pictures[start : start + 128], device))
        named = {
            question: [QUESTIONS[question][index] for index in scores.argmax(dim=-1).tolist()]
            for question, scores in logits.items()
        }
        verdicts += [Verdict(*answers) for answers in zip(*(named[question] for question in QUESTIONS), strict=True)]
    return verdicts


def _smooth(
    count: int, channels: int, knots: int, size: int, generator: torch.Generator
) -> Float[Tensor, "count channels size size"]:
    """Chance numbers in -1..1 that change slowly over a picture."""
    coarse = 2 * torch.rand((count, channels, knots, knots), generator=generator) - 1
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).clamp(-1, 1)


def spoil(
    image_pm1: Float[Tensor, "count 3 size size"], generator: torch.Generator
) -> Float[Tensor, "count 3 size size"]:
    """Pictures as a model draws them, each by its own chance amounts: bent, smeared in places, tinted and noisy.

    Every point moves by up to three pixels, half of them with the whole picture.
    """
    count, size, device = len(image_pm1), image_pm1.shape[-1], image_pm1.device

    def amount(channels: int = 1) -> Tensor:
        return torch.rand((count, channels, 1, 1), generator=generator)

    bend = _smooth(count, 2, 5, size, generator) * 1.5 * amount() + (2 * amount(2) - 1) * 1.5
    straight = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, size, size], align_corners=False)
    grid = straight + bend.permute(0, 2, 3, 1) * 2 / size
    moved = F.grid_sample(image_pm1, grid.to(device), padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    softness = (_smooth(count, 1, 4, size, generator) * 0.5 + amount() - 0.2).clamp(0, 1).to(device)
    smeared = moved + (blurred - moved) * softness
    tinted = smeared * (1 + 0.2 * (2 * amount() - 1)).to(device) + 0.15 * (2 * amount(3) - 1).to(device)
    noise = torch.randn(tinted.shape, generator=generator).to(device)
    return tinted + noise * 0.15 * amount().to(device)


def labels_of(scenes: list[Scene]) -> dict[str, Int[Tensor, " count"]]:
    """The right answer's number for each question; a subject has no colour to name."""

    def number(question: str, answer: str | None) -> int:
        return _IGNORED if answer is None else QUESTIONS[question].index(answer)

    return {
        question: torch.tensor([number(question, getattr(scene, question)) for scene in scenes])
        for question in QUESTIONS
    }


@torch.inference_mode()
def _through(autoencoder: AutoencoderKL, pictures: Pictures, seed: int) -> Pictures:
    """Pictures decoded from latents with a little noise on them, as a diffusion model leaves it."""
    generator = torch.Generator().manual_seed(seed)
    decoded = []
    for latents in torch.split(encode(autoencoder, pictures), 128):
        strength = 0.4 * torch.rand((len(latents), 1, 1, 1), generator=generator)
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        image_pm1 = autoencoder.decode(noisy.to(autoencoder.device)).sample
        decoded.append(((image_pm1.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    spoiled: Pictures = torch.cat(decoded).numpy()
    return spoiled


def train_judge(
    autoencoder: AutoencoderKL, work: Path, steps: int, count: int, seed: int, device: torch.device
) -> tuple[Judge, Trained]:
    """A judge of everything that can be drawn; a quarter of its pictures have been through the autoencoder."""
    scenes = sample_scenes(count, seed + 30, held_out=False, figures=FIGURES, styles=tuple(STYLES))
    pictures = render_all(scenes, work).copy()
    pictures[: count // 4] = _through(autoencoder, pictures[: count // 4], seed)
    labels = {question: numbers.to(device) for question, numbers in labels_of(scenes).items()}
    torch.manual_seed(seed + 30)
    judge = Judge().to(device)
    batch = 64

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(count, (batch,), generator=generator)
        image_pm1 = spoil(to_pm1(pictures[rows.numpy()], device), generator)
        logits = judge(image_pm1.contiguous(memory_format=torch.channels_last))
        losses = [F.cross_entropy(logits[q], labels[q][rows], ignore_index=_IGNORED) for q in QUESTIONS]
        return torch.stack(losses).sum()

    schedule = Schedule(steps=steps, learning_rate=2e-3, warmup_steps=min(50, steps), flat_share=0.3)
    return judge, fit("judge", judge, loss_of_step, schedule, work, seed, device)
