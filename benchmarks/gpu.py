"""Time on a GPU: images a second of the image encoders, and training steps; ours and the plain ones.

    python -m benchmarks.gpu

Weights are random, of the published sizes. Images and steps are in fp16, or with autocast to fp16 (CLIP-LoRA, MaPLe),
as in the configs. "Plain" images go through the encoder in batches of 32; a plain step is as in
benchmarks/text_encoder.py and benchmarks/train_step.py. Peak memory is that of PyTorch's allocator in one step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate

from benchmarks import measure, text_encoder, train_step
from dassl.utils import UserError, collect_env_info, command_line
from tools.random_weights import build_random_clip
from vlm.images.encoder import build_image_encoder
from vlm.openai import build_model


def synchronize(compute: Callable) -> Callable:
    """Return ``compute`` as a function that returns when the GPU has finished."""

    def run() -> None:
        """Call ``compute``, and wait."""
        compute()
        torch.cuda.synchronize()

    return run


def measure_pair(plain: Callable, ours: Callable, turns: int) -> dict[str, measure.Times]:
    """Return the times of two computations, ``plain`` and ``ours``, which take turns."""
    pair = {"plain": plain, "ours": ours}
    return measure.measure_in_turns({name: (synchronize(f), lambda: None) for name, f in pair.items()}, turns)


def measure_peak(compute: Callable) -> str:
    """Return the peak of GB that PyTorch allocates in ``compute``, as text."""
    torch.cuda.reset_peak_memory_stats()
    synchronize(compute)()
    return f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"


def measure_images(backbone: str, num_images: int, turns: int) -> dict:
    """Return the table's row on ``num_images`` random images through ``backbone``, with their way to the GPU."""
    visual = build_model(build_random_clip(backbone, 0)).cuda().requires_grad_(False).visual
    images = torch.rand(num_images, 3, visual.input_resolution, visual.input_resolution)
    encoder = build_image_encoder(visual, backbone)

    @torch.no_grad()
    def plain() -> None:
        """Encode the images in batches of 32, as CoOp does."""
        for batch in images.split(32):
            visual(batch.to("cuda", encoder.dtype)).cpu()

    times = measure_pair(plain, lambda: list(encoder.encode(iter(images))), turns)
    rates = {f"{name}, images a second": f"{num_images / t.median:,.0f}" for name, t in times.items()}
    return {"backbone": backbone, **rates, "ratio": f"{times['plain'].median / times['ours'].median:.2f}"}


def measure_step(method: str, classes: int, turns: int) -> dict:
    """Return the table's row on a training step of ``method``, CoOp (RN50, 16 tokens) or one of train_step.METHODS."""
    if method == "CoOp":
        ours, plain, _ = text_encoder.build_steps(classes, 16, "cuda")
    else:
        steps = [train_step.build_step(method, classes, is_plain, "cuda") for is_plain in (False, True)]
        ours, plain = map(torch.autocast("cuda", torch.float16), steps)
    times = measure_pair(plain, ours, turns)
    milliseconds = {f"{name}, ms": f"{1e3 * t.median:.4g}" for name, t in times.items()}
    row: dict = {"method": method, "classes": classes, **milliseconds}
    row["ratio"] = f"{times['plain'].median / times['ours'].median:.1f}"
    return row | {"plain, peak GB": measure_peak(plain), "ours, peak GB": measure_peak(ours)}


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Print two tables: images a second by backbone, and milliseconds of a training step by method and classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("this benchmark is for a GPU, and PyTorch finds none")
    print(collect_env_info())
    rows = [measure_images(backbone, args.images, args.turns) for backbone in ("RN50", "ViT-B/16")]
    print(tabulate(rows, headers="keys", tablefmt="github"), flush=True)
    settings = [("CoOp", classes) for classes in args.classes] + [("CLIPLoRA", 10), ("MaPLe", 10), ("MaPLe", 100)]
    rows = []
    for method, classes in settings:
        rows.append(measure_step(method, classes, args.turns))
        print(rows[-1], flush=True)
        torch.cuda.empty_cache()
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
