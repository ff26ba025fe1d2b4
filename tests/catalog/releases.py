"""A merge that is ready to be published."""

from pathlib import Path

from PIL import Image

from catalog.facts import ScoreSummary
from catalog.release import Parent, Release, ReleasePicture

from .lora_files import weights
from .samples import DOG, NEON, NOON, merge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def release_of(folder: Path) -> Release:
    """The dog in neon, ready to go."""
    paths = {}
    for number, name in enumerate(("weights", "kohya", "coefficients")):
        paths[name] = folder / f"{name}.safetensors"
        paths[name].write_bytes(weights(tensors=number + 1))
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    subject = Parent("subject", "dog", "you/dog-lora", COMMIT, "dog.safetensors", DOG, "mit", "a sks dog")
    style = Parent("style", "neon", "neon-lora", "local", "neon.safetensors", NEON, "openrail++", "in neon style")
    seen = ScoreSummary("dino:tiny@1:2", 4, 0.6, 0.3, 0.8, 0.6, None, NOON)
    return Release(
        merge_id=merge().merge_id,
        subject=subject,
        style=style,
        base_model="stabilityai/stable-diffusion-xl-base-1.0",
        base_revision=COMMIT,
        method="ziplora",
        recipe=dict(merge().recipe),
        licence="openrail++",
        prompt="a sks dog in neon style",
        score_01=0.7,
        scores=(seen,),
        pictures=(ReleasePicture(folder / "0.png", "a sks dog in neon style", 1),),
        builder={"ziplora": "0.1.0"},
        **paths,
    )
