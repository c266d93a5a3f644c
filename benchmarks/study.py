"""The study on ImageNette with RN50 (11 runs, one seed, 200 epochs), in CPU seconds: ours against the original's way.

    python -m benchmarks.study --root ./data

A whole study takes hours, so its parts are measured turn by turn in one process and multiplied by how often the
study's runs need them. The original decodes, crops and encodes every image whenever it is needed, and computes 77
positions of every prompt at every training step and every test batch. Ours encodes a draw once for all runs.
Weights are random ones of RN50's dimensions. Without ImageNette in --root, pictures of noise stand in.
"""

from __future__ import annotations

import argparse
import copy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from benchmarks.image_encoder import visual_of
from benchmarks.measure import default_allocator, in_turns, machine
from benchmarks.text_encoder import steps
from dassl.config import get_cfg_default, merge_file
from dassl.data.transforms import build_transform
from dassl.utils import read_image, tune_malloc
from vlm.images.encoder import build_image_encoder

SHOTS, CLASSES, EPOCHS, BATCH, TEST, TEST_BATCH = (1, 2, 4, 8, 16), 10, 200, 32, 3925, 100
CONFIG = Path(__file__).resolve().parents[1] / "configs/trainers/CoOp/rn50.yaml"
VIEWS = 16


def counts() -> dict[str, int]:
    """How many images and training steps the study has; a last batch that is not full is dropped, unless alone."""
    images = [CLASSES * shots for shots in SHOTS]
    batches = [max(1, n // BATCH) for n in images]
    seen = [min(n, batch * BATCH) for n, batch in zip(images, batches, strict=True)]
    runs = 1 + 2 * len(SHOTS)
    return {
        "steps": 2 * EPOCHS * sum(batches),
        "drawn": 2 * EPOCHS * sum(seen),  # training images, in all runs of the original
        "different": EPOCHS * sum(seen),  # draws: both numbers of context tokens see the same
        "views": VIEWS * sum(images),
        "tested": runs * TEST,
        "test batches": runs * -(-TEST // TEST_BATCH),
    }


def pictures(root: str, count: int) -> list[Image.Image]:
    paths = islice(sorted(Path(root, "imagenet/images/val").glob("*/*")), 0, None, 20)
    found = [read_image(path) for path in islice(paths, count)]
    rng = np.random.default_rng(0)
    print(f"{len(found)} photos of {root}" if found else "no photos in --root; pictures of noise stand in")
    return found or [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(count)]


@torch.no_grad()
def per_image(root: str, turns: int) -> dict[str, float]:
    """CPU seconds of an image: prepared for training and for tests, encoded by the original and by ours."""
    cfg = get_cfg_default()
    merge_file(cfg, str(CONFIG))
    crop, centre = build_transform(cfg, is_train=True), build_transform(cfg, is_train=False)
    images = pictures(root, BATCH)
    visual = visual_of("RN50")
    eager = copy.deepcopy(visual).to(memory_format=torch.contiguous_format)
    tensors = torch.stack([centre(image) for image in images])
    encoder = build_image_encoder(visual, "random")
    computations = {
        "crop": (lambda: [crop(image) for image in images], tune_malloc),
        "centre": (lambda: [centre(image) for image in images], tune_malloc),
        "eager": (lambda: eager(tensors), default_allocator),
        "ours": (lambda: list(encoder.encode(tensors)), tune_malloc),
    }
    return {name: t.cpu_median / len(images) for name, t in in_turns(computations, turns).items()}


def per_step(turns: int) -> dict[str, float]:
    """CPU seconds of the text encoder at a training step, the mean of 16 and 4 context tokens; of a test batch."""
    found = {"ours": 0.0, "plain": 0.0, "plain test": 0.0}
    for n_ctx in (16, 4):
        ours, plain, _ = steps(CLASSES, n_ctx, "imagenette")
        times = in_turns({"ours": (ours, tune_malloc), "plain": (plain, default_allocator)}, turns)
        for name, t in times.items():
            found[name] += t.cpu_median / 2
    found["plain test"] = found["plain"] / 2  # forward only
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="./data", help="folder of the data sets")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    n, image, step = counts(), per_image(args.root, args.turns), per_step(args.turns)
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
