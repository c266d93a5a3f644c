"""Time of CLIP's image encoder on a CPU, in milliseconds an image: ours and PyTorch as the original runs it.

    python -m benchmarks.image_encoder
    python -m benchmarks.image_encoder --backbones RN50 ViT-B/32 --turns 9

Weights are random; they take the time of pretrained ones. "Eager" is PyTorch in fp32 with batches of 32, the default
memory layout and the default allocator.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import measure_in_turns, measure_matmul_rate, reset_malloc
from dassl.utils import UserError, collect_env_info, tune_malloc
from tools.random_weights import build_random_clip
from vlm.images.encoder import TorchEncoder, build_image_encoder
from vlm.openai import build_model

BATCH = 32  # images: CoOp's batches of training images


def build_visual(backbone: str) -> nn.Module:
    """Return OpenAI's image encoder ``backbone``: random weights, frozen, fp32, channels last, as loaded on a CPU."""
    visual = build_model(build_random_clip(backbone, 0)).float().requires_grad_(False).visual
    return visual.to(memory_format=torch.channels_last)


@torch.no_grad()
def measure_backbone(backbone: str, turns: int, num_images: int) -> list[dict]:
    """Return a backbone's table rows, one per encoder: medians of ``turns`` runs over ``num_images`` random images."""
    visual = build_visual(backbone)
    eager = copy.deepcopy(visual).to(memory_format=torch.contiguous_format)
    images = torch.rand(num_images, 3, visual.input_resolution, visual.input_resolution)
    with FlopCounterMode(display=False) as counter:
        expected = torch.cat([eager(batch) for batch in images.split(BATCH)])
    encoders = {"PyTorch, channels last": TorchEncoder(visual, "", ""), "ours": build_image_encoder(visual, backbone)}
    try:
        encoders["ours, bf16"] = type(encoders["ours"])(visual, backbone, "bf16")
    except UserError as error:
        print(f"{backbone}: no bf16 row: {error}")
    computations = {"eager, as the original": (lambda: [eager(b) for b in images.split(BATCH)], reset_malloc)}
    differences = {"eager, as the original": 0.0}
    for name, encoder in encoders.items():
        start = time.perf_counter()
        features = torch.stack(list(encoder.encode(images)))
        print(f"{backbone}, {name}: {encoder}; first call {time.perf_counter() - start:.1f} s")
        differences[name] = ((features - expected).abs().max() / expected.abs().max()).item()
        computations[name] = (lambda encoder=encoder: list(encoder.encode(images)), tune_malloc)
    times = measure_in_turns(computations, turns)
    rate, base = measure_matmul_rate(), times["eager, as the original"]
    return [
        {
            "backbone": backbone,
            "": name,
            "ms an image": f"{1e3 * t.median / num_images:.3g} "
            f"({1e3 * min(t.wall) / num_images:.3g} to {1e3 * max(t.wall) / num_images:.3g})",
            "CPU ms an image": f"{1e3 * t.cpu_median / num_images:.3g}",
            "ratio": f"{base.median / t.median:.2f}",
            "share of matmul rate": f"{counter.get_total_flops() / t.median / rate:.0%}",
            "largest difference": f"{differences[name]:.0e}",
        }
        for name, t in times.items()
    ]


def main() -> None:
    """Print a table: time per image, speed-up and error of each image encoder, for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["RN50", "ViT-B/32"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    print(collect_env_info())
    rows = [row for backbone in args.backbones for row in measure_backbone(backbone, args.turns, args.images)]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
