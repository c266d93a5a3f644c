"""CoOp over ImageNet-21k's 21,841 class names, at the dimensions of RN50: set-up and a training step.

    python -m benchmarks.many_classes                               # 256, 512 and 1024 sampled classes; minutes
    python -m benchmarks.many_classes --sampled 512 0 --n-ctx 4     # 0: all classes, 10 minutes and more a step

Peak memory is that of a fresh process, CLIP's 0.4 GB included, after two steps of SGD over a batch of 32; with --csc
each class has a context of its own. Weights are random.
"""

from __future__ import annotations

import argparse
import time

import torch
from tabulate import tabulate
from yacs.config import CfgNode

from benchmarks.measure import machine, peak_memory
from dassl.utils import keep_memory
from tools.fix_imagenet import imagenet21k_names
from tools.random_weights import random_clip
from trainers.coop import CustomCLIP
from trainers.sampled_softmax import Sample, logits_of_classes
from vlm.openai import CLIP, build_model

BATCH = 32  # images; CoOp's batches of training images
SCALE = 4.6052  # the logarithm of 100, to which OpenAI's scales have grown


def names_of(classes: int) -> list[str]:
    return list(imagenet21k_names().values())[:classes]


def model_of(clip: CLIP, names: list[str], n_ctx: int, csc: bool = False) -> CustomCLIP:
    node = CfgNode({"N_CTX": n_ctx, "CTX_INIT": "", "CSC": csc, "CLASS_TOKEN_POSITION": "end"})
    return CustomCLIP(names, clip, node)


def rn50() -> CLIP:
    return build_model(random_clip("RN50", 0)).float().requires_grad_(False)


def optimizer_of(model: CustomCLIP, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([model.prompt_learner.ctx], lr=rate, momentum=0.9, weight_decay=5e-4)


def step(model: CustomCLIP, optimizer, features: torch.Tensor, labels: torch.Tensor, size: int, seed: int) -> float:
    """A training step over ``size`` classes, or all (0)."""
    if size:
        sample = Sample.draw(labels, size, len(model.prompt_learner.lengths), seed)
        loss = sample.loss(logits_of_classes(model, features, sample.classes))
    else:
        loss = torch.nn.functional.cross_entropy(model(features), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def steps(classes: int, n_ctx: int, csc: bool, size: int, turns: int) -> dict[str, float]:
    """Seconds of set-up and of a step, without the first of several."""
    keep_memory()
    torch.manual_seed(0)
    clip, times = rn50(), []
    start = time.perf_counter()
    model = model_of(clip, names_of(classes), n_ctx, csc)
    set_up = time.perf_counter() - start
    optimizer = optimizer_of(model, 0.002)
    features, labels = torch.randn(BATCH, 1024), torch.randint(classes, (BATCH,))
    for turn in range(turns):
        start = time.perf_counter()
        step(model, optimizer, features, labels, size, turn)
        times.append(time.perf_counter() - start)
    return {"set-up, s": set_up, "a step, s": sorted(times[1:] or times)[len(times[1:]) // 2]}


def cost(classes: int, n_ctx: int, csc: bool, sizes: list[int], turns: int) -> None:
    rows = []
    for size in sizes:
        few = turns if size else 1
        row = {"classes": classes, "of a step": size or classes, "context tokens": n_ctx, "CSC": csc}
        row |= {key: f"{value:.3g}" for key, value in steps(classes, n_ctx, csc, size, few).items()}
        row["peak GB"] = f"{peak_memory(steps, classes, n_ctx, csc, size, min(few, 2)):.2f}"
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=21841)
    parser.add_argument("--sampled", type=int, nargs="+", default=[256, 512, 1024], help="classes of a step; 0: all")
    parser.add_argument("--n-ctx", type=int, default=16, help="context tokens")
    parser.add_argument("--csc", action="store_true", help="a context for each class")
    parser.add_argument("--turns", type=int, default=3, help="steps that are timed, of samples")
    args = parser.parse_args()
    print(machine())
    cost(args.classes, args.n_ctx, args.csc, args.sampled, args.turns + 1)


if __name__ == "__main__":
    main()
