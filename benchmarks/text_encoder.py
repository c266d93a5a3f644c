"""CLIP RN50's text encoder, one forward and backward pass over the prompts of all classes: ours against the plain one.

    python -m benchmarks.text_encoder
    python -m benchmarks.text_encoder --classes 10 100 --names imagenette --turns 9

The plain one computes 77 positions of every prompt, as CoOp does. Beyond 100 classes it is extrapolated from 100 (its
work is proportional to them). Peak memory is that of a fresh process, CLIP's 0.4 GB included.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate

from benchmarks.measure import default_allocator, in_turns, machine, matmul_rate, peak_memory
from dassl.utils import tune_malloc
from tools.fix_imagenet import load_imagenet_names
from tools.random_weights import build_random_clip
from trainers.coop import PromptLearner
from vlm.openai import build_model
from vlm.text.encoder import TextEncoder
from vlm.text.plain import encode_prompts

NETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]  # ImageNette's classes among ImageNet's
PLAIN_UP_TO = 100  # classes


def names_of(classes: int, of: str) -> list[str]:
    """The first class names of ImageNet, or of ImageNette, which are shorter; over and over if need be."""
    names = list(load_imagenet_names().values())
    names = [names[i] for i in NETTE] if of == "imagenette" else names
    return [names[i % len(names)] for i in range(classes)]


def steps(classes: int, n_ctx: int, of: str) -> tuple[Callable, Callable, int]:
    """A forward and backward pass of ours and of the plain encoder, which return (features, gradient); and the tokens
    that ours computes."""
    torch.manual_seed(0)
    clip = build_model(build_random_clip("RN50", 0)).float().requires_grad_(False)
    encoder = TextEncoder(clip)
    learner = PromptLearner(names_of(classes, of), encoder, n_ctx)
    ends = learner.index.eq(learner.index.max()).int().argmax(1)  # the end-of-text token has the last row
    weights = torch.linspace(-1, 1, classes * 1024).view(classes, 1024)

    def step(encode: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        learner.ctx.grad = None
        features = encode(learner())
        (features * weights).sum().backward()
        return features.detach(), learner.ctx.grad

    ours = lambda: step(lambda table: encoder(table, learner.layout))  # noqa: E731
    plain = lambda: step(lambda table: encode_prompts(clip, table[learner.index], ends))  # noqa: E731
    return ours, plain, len(learner.layout.index)


def one_step(classes: int, n_ctx: int, of: str, plain: bool) -> None:
    """For the peak memory of a process that does nothing else."""
    tune_malloc()
    steps(classes, n_ctx, of)[1 if plain else 0]()


def measure(classes: int, n_ctx: int, of: str, turns: int, plain_of_100: float | None) -> tuple[dict, float]:
    ours, plain, tokens = steps(classes, n_ctx, of)
    computations = {"ours": (ours, tune_malloc)}
    if classes <= PLAIN_UP_TO:
        computations["plain"] = (plain, default_allocator)
        for mine, theirs, what in zip(ours(), plain(), ("features", "gradient"), strict=True):
            error = ((mine - theirs).abs().max() / theirs.abs().max()).item()
            print(f"{classes} classes: {what} differ by {error:.1e} of the largest")
    times = in_turns(computations, turns)
    work = 2 * 2 * 12 * 512**2 * 12 * tokens  # 12 width² multiply-adds a token and layer; forward, and the same again
    seconds = times["plain"].median if "plain" in times else plain_of_100 * classes / 100
    row = {
        "classes": classes,
        "names of": of,
        "context tokens": n_ctx,
        "tokens computed": f"{tokens:,} of {77 * classes:,}",
        "plain, s": str(times["plain"]) if "plain" in times else f"{seconds:.4g} (extrapolated)",
        "ours, s": str(times["ours"]),
        "ratio": f"{seconds / times['ours'].median:.1f}",
        "share of matmul rate": f"{work / times['ours'].median / matmul_rate():.0%}",
        "plain, peak GB": f"{peak_memory(one_step, classes, n_ctx, of, True):.2f}" if classes <= PLAIN_UP_TO else "-",
        "ours, peak GB": f"{peak_memory(one_step, classes, n_ctx, of, False):.2f}",
    }
    return row, seconds * 100 / classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000, 21841])
    parser.add_argument("--names", choices=["imagenet", "imagenette"], default="imagenet", help="the classes' names")
    parser.add_argument("--turns", type=int, default=5, help="that count, up to 1000 classes; above, one")
    args = parser.parse_args()
    print(machine())
    rows, plain_of_100 = [], None
    for classes in args.classes:
        if classes > PLAIN_UP_TO and plain_of_100 is None:
            plain_of_100 = measure(100, 16, args.names, 1, None)[1]
        n_ctx, turns = (16, args.turns) if classes <= 1000 else (4, 1)
        row, plain = measure(classes, n_ctx, args.names, turns, plain_of_100)
        plain_of_100 = plain if classes == 100 else plain_of_100
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
