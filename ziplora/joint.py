"""What a merge should do on prompts that ask for subject and style together: what both adapters do, added up.

No adapter alone has a target there. But the base's prediction, plus what the subject's LoRA alone changes in it, plus
what the style's alone does, draws both; a merge that predicts the same in one pass draws like it. Of the two
effects the style's is the stronger in pictures, so the subject's has some more weight in the sum.
"""

import numpy as np
import torch

from .backbone import Sdxl, as_bytes
from .calibration import Calibrated, check, predicted
from .pair import Pair
from .recipe import Drawing, JointCalibration, content_id


def calibrate_jointly(request: JointCalibration, pair: Pair, backbone: Sdxl) -> tuple[Calibrated, ...]:
    """For each prompt noisy latents of pictures that the sum of effects draws of it, and what it predicts of them."""
    seeds = range(request.seed * 1_000, request.seed * 1_000 + request.pictures)
    wanted = [(prompt, seed) for prompt in request.prompts for seed in seeds]
    with torch.no_grad(), backbone.composed(pair.subject, pair.style, request.subject_weight):
        pictures = as_bytes(backbone.draw(wanted, Drawing(request.steps, request.guidance, request.side)))
    calibrated = []
    for prompt, drawn in zip(request.prompts, np.split(pictures, len(request.prompts)), strict=True):
        composed = backbone.composed(pair.subject, pair.style, request.subject_weight)
        one = predicted(request, prompt, content_id([request.seed, prompt]), drawn, backbone, composed)
        check(one, "the sum of both LoRAs' effects", prompt)
        calibrated.append(one)
    return tuple(calibrated)
