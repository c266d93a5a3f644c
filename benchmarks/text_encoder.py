"""Time and memory of RN50's text encoder, forward and backward over the prompts of all classes: ours and the plain one.

    python -m benchmarks.text_encoder
    python -m benchmarks.text_encoder --classes 10 100 --turns 9

The plain one computes 77 positions of every prompt, as CoOp does; it is measured with up to 100 classes, as its time is
proportional to their number. Peak memory is that of a new process, including 0.4 GB for CLIP.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from tabulate import tabulate

from benchmarks import measure
from dassl.utils import collect_env_info, tune_malloc
from tools.fix_imagenet import load_imagenet_names
from tools.random_weights import build_random_clip
from trainers.coop import PromptLearner
from vlm.openai import CLIP, build_model
from vlm.text.encoder import TextEncoder
from vlm.text.plain import encode_prompts

MAX_PLAIN = 100  # classes that the plain encoder is measured with: 1,000 take two minutes a pass and 40 GB


def load_names(classes: int) -> list[str]:
    """Return ``classes`` class names of ImageNet, repeated if there are too few."""
    names = list(load_imagenet_names().values())
    return [names[i % len(names)] for i in range(classes)]


def build_encoders(clip: CLIP, names: list[str], n_ctx: int) -> tuple[PromptLearner, dict[str, Callable]]:
    """Return prompts with ``n_ctx`` context tokens and functions, "ours" and "plain", that return their features."""
    encoder = TextEncoder(clip)
    learner = PromptLearner(names, encoder, n_ctx).to(clip.logit_scale.device)
    eot_positions = learner.index.eq(learner.index.max()).int().argmax(1)  # the end-of-text token has the last row
    return learner, {
        "ours": lambda: encoder(learner(), learner.layout),
        "plain": lambda: encode_prompts(clip, learner()[learner.index], eot_positions),
    }


def build_steps(classes: int, n_ctx: int, device: str = "cpu") -> tuple[Callable, Callable, int]:
    """Return our encoder's step, the plain encoder's step, and the number of tokens that ours computes.

    A step is a function without arguments: it runs forward and backward over the prompts of ``load_names`` with
    ``n_ctx`` context tokens, and returns the features and the context's gradient. On a GPU, it is in fp16.
    """
    torch.manual_seed(0)
    clip = build_model(build_random_clip("RN50", 0)).to(device).requires_grad_(False)
    learner, encoders = build_encoders(clip.float() if device == "cpu" else clip, load_names(classes), n_ctx)
    weights = torch.linspace(-1, 1, classes * 1024, device=device).view(classes, 1024)

    def step(encode: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts' features, ``encode()``, and the context's gradient of a weighted sum of them."""
        learner.ctx.grad = None
        features = encode()
        (features * weights).sum().backward()
        return features.detach(), learner.ctx.grad

    return partial(step, encoders["ours"]), partial(step, encoders["plain"]), len(learner.layout.index)


def run_step(classes: int, n_ctx: int, plain: bool) -> None:
    """Run one step of ``build_steps``, the plain encoder's if ``plain``, else ours, to measure its peak memory."""
    tune_malloc()
    build_steps(classes, n_ctx)[1 if plain else 0]()


def measure_classes(classes: int, n_ctx: int, turns: int) -> dict:
    """Return the table's row on a step over the prompts of ``classes``; the plain encoder's only up to MAX_PLAIN."""
    ours, plain, tokens = build_steps(classes, n_ctx)
    computations = {"ours": (ours, tune_malloc)}
    if has_plain := classes <= MAX_PLAIN:
        computations["plain"] = (plain, measure.reset_malloc)
        for actual, expected, name in zip(ours(), plain(), ("features", "gradient"), strict=True):
            error = ((actual - expected).abs().max() / expected.abs().max()).item()
            print(f"{classes} classes: {name} differ by {error:.1e} of the largest")
    times = measure.measure_in_turns(computations, turns)
    # 12 width² multiply-adds a token in each of 12 layers of width 512. The backward pass takes as many again.
    operations = 2 * 2 * 12 * 512**2 * 12 * tokens
    peak = lambda plain: f"{measure.measure_peak_memory(run_step, classes, n_ctx, plain):.2f}"  # noqa: E731
    return {
        "classes": classes,
        "context tokens": n_ctx,
        "tokens computed": f"{tokens:,} of {77 * classes:,}",
        "plain, s": str(times["plain"]) if has_plain else "-",
        "ours, s": str(times["ours"]),
        "ratio": f"{times['plain'].median / times['ours'].median:.1f}" if has_plain else "-",
        "share of matmul rate": f"{operations / times['ours'].median / measure.measure_matmul_rate():.0%}",
        "plain, peak GB": peak(True) if has_plain else "-",
        "ours, peak GB": peak(False),
    }


def main() -> None:
    """Print a table: time and memory of the plain and the packed text encoder, by number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000, 21841])
    parser.add_argument("--turns", type=int, default=5, help="that count, up to 1000 classes; above, one")
    args = parser.parse_args()
    print(collect_env_info())
    settings = [(classes, 16, args.turns) if classes <= 1000 else (classes, 4, 1) for classes in args.classes]
    print(tabulate([measure_classes(*each) for each in settings], headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
