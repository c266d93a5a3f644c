"""CLIP's image encoder on a CPU, milliseconds an image: ours against PyTorch as the original runs it.

    python -m benchmarks.image_encoder
    python -m benchmarks.image_encoder --backbones RN50 ViT-B/32 --turns 9

With random weights of the backbone's dimensions, which take the time that real ones take. "Eager" is fp32, batches of
32, tensors in PyTorch's default layout and the allocator as it is by default.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import default_allocator, in_turns, machine, matmul_rate
from dassl.utils import UserError, tune_malloc
from tools.random_weights import build_random_clip
from vlm.images.encoder import TorchEncoder, build_image_encoder
from vlm.openai import build_model

BATCH = 32


def visual_of(backbone: str):
    """A frozen image encoder with random weights, as vlm.clip.load gives it on a CPU."""
    visual = build_model(build_random_clip(backbone, 0)).float().requires_grad_(False).visual
    return visual.to(memory_format=torch.channels_last)


@torch.no_grad()
def rows_of(backbone: str, turns: int, images: int) -> list[dict]:
    visual = visual_of(backbone)
    eager = copy.deepcopy(visual).to(memory_format=torch.contiguous_format)
    pictures = torch.rand(images, 3, visual.input_resolution, visual.input_resolution)
    with FlopCounterMode(display=False) as counter:
        expected = torch.cat([eager(batch) for batch in pictures.split(BATCH)])
    encoders = {"PyTorch, channels last": TorchEncoder(visual, "", ""), "ours": build_image_encoder(visual, backbone)}
    try:
        encoders["ours, bf16"] = type(encoders["ours"])(visual, backbone, "bf16")
    except UserError as error:
        print(f"{backbone}: no bf16 row: {error}")
    computations = {"eager, as the original": (lambda: [eager(b) for b in pictures.split(BATCH)], default_allocator)}
    differences = {"eager, as the original": 0.0}
    for name, encoder in encoders.items():
        start = time.perf_counter()
        features = torch.stack(list(encoder.encode(pictures)))
        print(f"{backbone}, {name}: {encoder}; first call {time.perf_counter() - start:.1f} s")
        differences[name] = ((features - expected).abs().max() / expected.abs().max()).item()
        computations[name] = (lambda encoder=encoder: list(encoder.encode(pictures)), tune_malloc)
    times = in_turns(computations, turns)
    rate, base = matmul_rate(), times["eager, as the original"]
    return [
        {
            "backbone": backbone,
            "": name,
            "ms an image": f"{1e3 * t.median / images:.3g} "
            f"({1e3 * min(t.wall) / images:.3g} to {1e3 * max(t.wall) / images:.3g})",
            "CPU ms an image": f"{1e3 * t.cpu_median / images:.3g}",
            "ratio": f"{base.median / t.median:.2f}",
            "share of matmul rate": f"{counter.get_total_flops() / t.median / rate:.0%}",
            "largest difference": f"{differences[name]:.0e}",
        }
        for name, t in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["RN50", "ViT-B/32"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    print(machine())
    rows = [row for backbone in args.backbones for row in rows_of(backbone, args.turns, args.images)]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
