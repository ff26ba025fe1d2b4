"""What a pair costs at the true size of SDXL: `python -m tests.bench.gpu_sdxl` measures it on this machine's GPU.

The UNet has SDXL's configuration and random weights, the LoRAs random factors on all attention projections; latents and
prompts are random numbers in place of what autoencoder and text encoders make. All else is the pipeline's own code.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.sdxl import REDUCED, SDXL, build_unet
from ziplora.adapter import Layer
from ziplora.backbone import Condition, Sdxl, device_named
from ziplora.calibration import Calibrated, predicted
from ziplora.keys import Module
from ziplora.memory import Room
from ziplora.methods import METHODS
from ziplora.methods.solution import Problem, unheard
from ziplora.methods.student import Student
from ziplora.methods.ziplora import Parameters, objective
from ziplora.pair import DIRECT, Pair, is_attention
from ziplora.recipe import Calibration, JointCalibration

_LOG = logging.getLogger(__name__)
_PROMPTS = ("a dog in ink", "a dog in ink on a beach", "a dog in ink in a wood", "a dog in ink at night")
_TOKENS = 77
_LATENT_SCALE = 8
"""Pixels of a picture for one of its latent."""
_CHANGE = 0.05
"""Of a LoRA's change to the weight it changes, by their sizes: about what training at rank 64 leaves."""
_GIB = 1 << 30
_PAGE_WIDTH = 130
_WARMING_STEPS = 3
"""The fewest that count as a merge."""
_CONSUMER_BYTES = 23 * _GIB
"""What a card of 24 GB leaves to a process."""
_OTHER_PARTS_BYTES = 1_800_000_000
"""SDXL's autoencoder and text encoders in half precision, which lie on the card too."""


class BareUnet(Sdxl):
    """A UNet alone: what it is told and shown are random numbers of the right shapes."""

    def __init__(self, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with device:  # made where it is used, and in the precision in which it is used
                unet = build_unet(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(usual)
        self.pipeline = SimpleNamespace(unet=unet)
        self.device, self.dtype, self.room = device, dtype, Room(device)
        self._alphas = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ).alphas_cumprod.double()
        self._parts = {"unet": unet}
        self._width = config["cross_attention_dim"]
        self._pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def condition(self, prompt: str, side: int) -> Condition:
        """Random embeddings, of which a prompt has its own."""
        generator = torch.Generator().manual_seed(len(prompt))
        hidden = torch.randn((1, _TOKENS, self._width), generator=generator)
        pooled = torch.randn((1, self._pooled), generator=generator)
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
        return Condition(hidden.to(self.device), pooled.to(self.device), time_ids.to(self.device))

    def encode(self, pictures: UInt8[NDArray[np.uint8], "count side side 3"]) -> Float[Tensor, "count channels h w"]:
        """Random latents."""
        side = pictures.shape[1] // _LATENT_SCALE
        return torch.randn((len(pictures), 4, side, side), generator=torch.Generator().manual_seed(len(pictures)))


def random_adapter(backbone: Sdxl, rank: int, seed: int) -> dict[Module, Layer]:
    """A LoRA on all attention projections."""
    generator, layers = torch.Generator().manual_seed(seed), {}
    for module, size in backbone.sizes().items():
        if is_attention(module):
            down = torch.randn((rank, size.inputs), generator=generator) / size.inputs**0.5
            up = torch.randn((size.outputs, rank), generator=generator) * _CHANGE / (3 * rank) ** 0.5
            layers[module] = Layer(down, up, 1.0)
    return layers


@dataclass(frozen=True)
class PairCost:
    """What one pair cost by one method, its adapters' calibrations at hand."""

    method: str
    side: int
    steps: int
    samples: int
    """That a step sees."""
    capped: bool
    """Whether it had no more memory than a consumer's card."""
    seconds: float
    """Of the whole pair in a process that has made one before, joint targets and the pictures for them included."""
    seconds_per_step: float
    rate_share: float
    """Of the device's measured matmul rate, by what a step computes where nothing is computed twice."""
    pairs_per_hour: float
    peak_bytes: int | None
    thrift: str


@dataclass(frozen=True)
class SideCost:
    """What is computed before a pair, at one picture side."""

    side: int
    calibration_seconds: float
    """Base and LoRA on the 16 samples of one adapter."""
    joint_seconds: float
    """Base and the sum of effects, three passes, on the 16 samples of each joint prompt."""
    drawing_seconds: float
    """Worked out at that rate: the denoising of the pictures that the joint samples are noised from."""
    sample_flops: float
    """Of one sample in a step, forward and backward."""


class Clock:
    """Seconds of a device's work, and the most memory that it took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        """The time when everything asked for so far is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What the work gives, and its seconds."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        started = self.now()
        result = work()
        return result, self.now() - started

    def peak_bytes(self) -> int | None:
        """Since the beginning of what was timed last."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


def matmul_rate(device: torch.device, dtype: torch.dtype, clock: Clock) -> float:
    """FLOP a second of large square matrix products."""
    width, times = (8192, 50) if device.type == "cuda" else (512, 5)
    one, other = (torch.randn((width, width), device=device, dtype=dtype) for _ in range(2))
    product = one @ other  # the first one starts the library

    def multiply() -> None:
        for _ in range(times):
            torch.mm(one, other, out=product)

    _, seconds = clock.timed(multiply)
    return 2 * width**3 * times / seconds


def calibration_of(backbone: Sdxl, role: str, layers: dict[Module, Layer], side: int) -> Calibrated:
    """One adapter's, computed as ever."""
    request = Calibration(role, "random", "1", prompt=f"a {role}", references_sha256=None, side=side)
    blank = np.zeros((request.pictures, side, side, 3), dtype=np.uint8)
    return predicted(request, request.prompt, request.calibration_id, blank, backbone, backbone.adapted(layers))


def joint_calibrations(backbone: Sdxl, pair: Pair, request: JointCalibration) -> tuple[Calibrated, ...]:
    """Those of the joint prompts, without pictures drawn for them."""
    blank = np.zeros((request.pictures, request.side, request.side, 3), dtype=np.uint8)

    def calibrated(number: int, prompt: str) -> Calibrated:
        composed = backbone.composed(pair.subject, pair.style, request.subject_weight)
        return predicted(request, prompt, f"{number:015x}", blank, backbone, composed)

    return tuple(calibrated(number, prompt) for number, prompt in enumerate(request.prompts, start=1))


def sample_flops(problem: Problem, config: dict[str, Any]) -> float:
    """What a step computes for each sample, counted on a UNet without numbers, which has room for everything."""
    bare = replace(problem, backbone=BareUnet(config, torch.device("meta"), torch.float32))
    student, parameters = Student(bare, DIRECT), Parameters()
    rows = [torch.arange(parameters.samples_per_step)] * 2
    with student.installed(), FlopCounterMode(display=False) as counter:
        torch.stack(objective(student, bare.calibrations, rows, parameters)).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / (2 * parameters.samples_per_step)


@contextmanager
def consumer_card() -> Iterator[None]:
    """As much memory as a consumer's card has, some of it taken by the parts of SDXL that are not here."""
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (_CONSUMER_BYTES - _OTHER_PARTS_BYTES) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Bench:
    """All measurements on one device with one pair of adapters."""

    def __init__(self, device: torch.device, dtype: torch.dtype, reduced: bool, rank: int, steps: int | None) -> None:
        self._config = REDUCED if reduced else SDXL
        self._steps, self.clock = steps, Clock(device)
        self.rate = matmul_rate(device, dtype, self.clock)
        self._backbone = BareUnet(self._config, device, dtype)
        self._pair = Pair(*(random_adapter(self._backbone, rank, seed) for seed in (1, 2)))

    def measure(self, side: int) -> tuple[SideCost, list[PairCost]]:
        """Everything at one picture side."""
        backbone, pair = self._backbone, self._pair
        backbone.room = Room(backbone.device)
        subject = calibration_of(backbone, "subject", dict(pair.subject), side)  # the first one warms up
        style, calibration_seconds = self.clock.timed(lambda: calibration_of(backbone, "style", dict(pair.style), side))
        request = JointCalibration(_PROMPTS, side=side)
        joint, joint_seconds = self.clock.timed(lambda: joint_calibrations(backbone, pair, request))
        problem = Problem(pair, backbone, subject, style, 0, unheard, joint)
        flops = sample_flops(problem, self._config)
        passes_computed, passes_drawn = 4 * request.samples, 3 * 2 * request.pictures * request.steps
        cost = SideCost(side, calibration_seconds, joint_seconds, joint_seconds * passes_drawn / passes_computed, flops)
        _LOG.info("%s", cost)
        METHODS["ziplora"].solve(problem, Parameters(steps=_WARMING_STEPS))
        pairs = self._pairs(problem, cost, capped=False)
        if backbone.device.type == "cuda":
            with consumer_card():
                pairs += self._pairs(problem, cost, capped=True)
        return cost, pairs

    def _pairs(self, problem: Problem, cost: SideCost, capped: bool) -> list[PairCost]:
        """`ziplora` with one sample of each side, as cheap as it gets, and both methods by their defaults."""
        joint = cost.joint_seconds + cost.drawing_seconds
        return [
            self._pair_cost("ziplora", 2, problem, cost, 0.0, capped),
            self._pair_cost("ziplora", 4, problem, cost, 0.0, capped),
            self._pair_cost("ziplora-joint", 4, problem, cost, joint, capped),
        ]

    def _pair_cost(
        self, name: str, samples: int, problem: Problem, cost: SideCost, before: float, capped: bool
    ) -> PairCost:
        backbone, method = self._backbone, METHODS[name]
        backbone.room = Room(backbone.device)
        times: list[float] = []

        def note(done: int, total: int) -> None:
            times.append(self.clock.now())

        calibrations = len(problem.joint) if method.joint else len(problem.calibrations)
        parameters = method.parameters(samples_per_step=samples // calibrations)
        if self._steps:
            parameters = replace(parameters, steps=self._steps)
        watched = replace(problem, progress=note)
        _, seconds = self.clock.timed(
            lambda: method.solve(replace(watched, pair=self._pair.on(backbone.device)), parameters)
        )
        per_step = (times[-1] - times[1]) / (len(times) - 2)  # the first finds its way, the second may be captured
        found = PairCost(
            name,
            cost.side,
            len(times),
            samples,
            capped,
            before + seconds,
            per_step,
            samples * cost.sample_flops / per_step / self.rate,
            3600 / (before + seconds),
            self.clock.peak_bytes(),
            backbone.room.trained.chosen.name.lower(),
        )
        _LOG.info("%s", found)
        return found


def show(console: Console, sides: Sequence[SideCost], pairs: Sequence[PairCost]) -> None:
    """Both tables."""
    before = Table("side", "calibration, s", "joint targets, s", "joint pictures, s", "TFLOP a sample")
    for cost in sides:
        seconds = (f"{one:.2f}" for one in (cost.calibration_seconds, cost.joint_seconds, cost.drawing_seconds))
        before.add_row(str(cost.side), *seconds, f"{cost.sample_flops / 1e12:.3g}")
    table = Table(
        "method",
        "side",
        "steps",
        "samples",
        "card",
        "pair, s",
        "step, ms",
        "of matmul rate",
        "pairs an hour",
        "peak, GiB",
        "thrift",
    )
    for pair in pairs:
        table.add_row(
            pair.method,
            str(pair.side),
            str(pair.steps),
            str(pair.samples),
            "24 GB" if pair.capped else "whole",
            f"{pair.seconds:.2f}",
            f"{1000 * pair.seconds_per_step:.0f}",
            f"{pair.rate_share:.0%}",
            f"{pair.pairs_per_hour:.0f}",
            f"{pair.peak_bytes / _GIB:.1f}" if pair.peak_bytes is not None else "–",
            pair.thrift,
        )
    console.print(before, table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and show."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_sdxl", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--side", type=int, nargs="+", default=(512, 1024), help="width and height of pictures")
    parser.add_argument("--steps", type=int, help="of either method (default: as many as it takes by itself)")
    parser.add_argument("--rank", type=int, default=64, help="of either LoRA")
    parser.add_argument("--reduced", action="store_true", help="a UNet of a tenth of the width, for a CPU")
    parser.add_argument("--json", type=Path, help="where to write the figures besides")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, dtype_name = device_named(options.device)
    device, dtype = torch.device(name), getattr(torch, dtype_name)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    bench = Bench(device, dtype, options.reduced, options.rank, options.steps)
    measured = [bench.measure(side) for side in options.side]
    sides, pairs = [cost for cost, _ in measured], [one for _, costs in measured for one in costs]
    facts = {
        "device": card,
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "dtype": dtype_name,
        "reduced": options.reduced,
        "rank": options.rank,
        "matmul_flops_per_second": bench.rate,
    }
    console = Console(width=_PAGE_WIDTH)
    console.print(f"{card}, {facts['date']}, {dtype_name}: {bench.rate / 1e12:.3g} TFLOP/s in large matmuls")
    show(console, sides, pairs)
    if options.json:
        found = facts | {"sides": [asdict(one) for one in sides], "pairs": [asdict(one) for one in pairs]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
