"""CPU seconds of the study on ImageNette with RN50 (11 runs, one seed, 200 epochs): ours and the original's way.

    python -m benchmarks.study

The study takes hours, so its steps are measured and multiplied by their number in its runs. The original decodes, crops
and encodes every image each time, and computes 77 positions of every prompt at every training step and test batch. Ours
encodes a random draw once for all runs. Weights are random, and images are noise.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from benchmarks.image_encoder import build_visual
from benchmarks.measure import measure_in_turns, reset_malloc
from benchmarks.text_encoder import build_steps
from dassl.config import get_cfg_default, merge_file
from dassl.data.transforms import build_transform
from dassl.utils import collect_env_info, tune_malloc
from vlm.images.encoder import build_image_encoder

# The study's shots, and the numbers of classes, epochs, images of a batch, test images and images of a test batch.
SHOTS, CLASSES, EPOCHS, BATCH, TEST, TEST_BATCH = (1, 2, 4, 8, 16), 10, 200, 32, 3925, 100
CONFIG = Path(__file__).resolve().parents[1] / "configs/trainers/CoOp/rn50.yaml"
IMAGE_SHAPE = (375, 500, 3)  # the most frequent one in ImageNet; the time of a crop depends on it, not on the values
VIEWS = 16  # random draws of an image with FEATURES.VIEWS 16, the README's example


def count_steps() -> dict[str, int]:
    """Return the numbers of training "steps", "test batches" and images ("drawn", "different", "views", "tested")."""
    # The loader drops a last batch that is not full, unless it is the only one.
    images = [CLASSES * shots for shots in SHOTS]
    batches = [max(1, n // BATCH) for n in images]
    used = [min(n, batch * BATCH) for n, batch in zip(images, batches, strict=True)]
    runs = 1 + 2 * len(SHOTS)
    return {
        "steps": 2 * EPOCHS * sum(batches),
        "drawn": 2 * EPOCHS * sum(used),  # training images in all runs, each encoded by the original
        "different": EPOCHS * sum(used),  # random draws: runs with 16 and with 4 context tokens share them
        "views": VIEWS * sum(images),
        "tested": runs * TEST,
        "test batches": runs * -(-TEST // TEST_BATCH),
    }


@torch.no_grad()
def measure_image(turns: int) -> dict[str, float]:
    """Return the CPU time per image, in seconds, of our two transforms and of two image encoders.

    Keys: "crop" and "centre" (transforms of training and test images), "eager" (PyTorch as in the original CoOp) and
    "ours". Each is the median of ``turns`` turns over BATCH images of IMAGE_SHAPE.
    """
    cfg = get_cfg_default()
    merge_file(cfg, str(CONFIG))
    crop, centre = build_transform(cfg, is_train=True), build_transform(cfg, is_train=False)
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, *IMAGE_SHAPE), dtype=np.uint8)
    images = [*map(Image.fromarray, noise)]
    visual = build_visual("RN50")
    eager = copy.deepcopy(visual).to(memory_format=torch.contiguous_format)
    tensors = torch.stack([centre(image) for image in images])
    encoder = build_image_encoder(visual, "random")
    computations = {
        "crop": (lambda: [crop(image) for image in images], tune_malloc),
        "centre": (lambda: [centre(image) for image in images], tune_malloc),
        "eager": (lambda: eager(tensors), reset_malloc),
        "ours": (lambda: list(encoder.encode(tensors)), tune_malloc),
    }
    return {name: t.cpu_median / len(images) for name, t in measure_in_turns(computations, turns).items()}


def measure_step(turns: int) -> dict[str, float]:
    """Return a step's CPU seconds in text encoders ("ours", "plain", "plain test"): mean of 16 and 4 context tokens."""
    seconds = {"ours": 0.0, "plain": 0.0, "plain test": 0.0}
    for n_ctx in (16, 4):
        ours, plain, _ = build_steps(CLASSES, n_ctx)
        times = measure_in_turns({"ours": (ours, tune_malloc), "plain": (plain, reset_malloc)}, turns)
        for name, t in times.items():
            seconds[name] += t.cpu_median / 2
    seconds["plain test"] = seconds["plain"] / 2  # a test batch has no backward pass
    return seconds


def main() -> None:
    """Print a table: CPU seconds of the ImageNette study, computed the original way and our ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    print(collect_env_info())
    n, image, step = count_steps(), measure_image(args.turns), measure_step(args.turns)
    print(", ".join(f"{name} {count:,}" for name, count in n.items()))
    print(", ".join(f"{name} {1e3 * t:.1f}" for name, t in image.items()), "CPU ms an image")
    print(", ".join(f"{name} {1e3 * t:.1f}" for name, t in step.items()), "CPU ms a step")
    original = (
        n["drawn"] * (image["crop"] + image["eager"])
        + n["tested"] * (image["centre"] + image["eager"])
        + n["steps"] * step["plain"]
        + n["test batches"] * step["plain test"]
    )
    tests, training = TEST * (image["centre"] + image["ours"]), n["steps"] * step["ours"]
    crop = image["crop"] + image["ours"]
    ways = {
        "the original's way": original,
        "ours, fresh crops, nothing cached": tests + training + n["different"] * crop,
        f"ours, FEATURES.VIEWS {VIEWS}, nothing cached": tests + training + n["views"] * crop,
        "ours, all features cached": training,
    }
    rows = [{"": way, "CPU seconds": f"{t:,.0f}", "ratio": f"{original / t:.1f}"} for way, t in ways.items()]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
