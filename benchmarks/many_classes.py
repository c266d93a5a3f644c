"""CoOp over ImageNet-21k's 21,841 class names, at the dimensions of RN50: set-up, a training step, evaluation.

    python -m benchmarks.many_classes                               # 256, 512 and 1024 sampled classes; minutes
    python -m benchmarks.many_classes --sampled 512 0 --n-ctx 4     # 0: all classes, 10 minutes and more a step
    python -m benchmarks.many_classes --effect                      # what sampling does to the accuracy

Peak memory is that of a fresh process, CLIP's 0.4 GB included, after two steps of SGD over a batch of 32; with --csc
each class has a context of its own. Weights are random; with --effect they are the tiny CLIP's (see :func:`effect`).
"""

from __future__ import annotations

import argparse
import contextlib
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
from vlm.clip.load import load
from vlm.openai import CLIP, build_model
from vlm.similarity import logits, normalize

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


def effect(classes: int, sizes: list[int], seeds: int, turns: int) -> None:
    """Accuracy on synthetic images after equally many steps, over all classes and over samples."""
    rows = []
    for size in [None, 0, *sizes]:  # untrained, over all, over samples
        accuracies, seconds = [], []
        for seed in range(seeds):
            train, test, model = synthetic(names_of(classes), seed)
            optimizer = optimizer_of(model, 0.0002)
            start = time.perf_counter()
            for turn in range(0 if size is None else turns):
                batch = torch.randint(len(train[1]), (BATCH,), generator=torch.Generator().manual_seed(turn))
                step(model, optimizer, train[0][batch], train[1][batch], size, turn + 10**6 * seed)
            seconds.append((time.perf_counter() - start) / turns)
            accuracies.append(accuracy(model, *test))
        told = ", ".join(f"{value:.2f}" for value in accuracies)
        row = {"classes": classes, "of a step": "untrained" if size is None else size or classes, "steps": turns}
        row |= {"accuracy, %": f"{sum(accuracies) / seeds:.2f} ({told})", "a step, s": f"{min(seconds):.3g}"}
        rows.append(row)
        print(row, flush=True)
    print(tabulate(rows, headers="keys", tablefmt="github"))


def synthetic(names: list[str], seed: int, distance: float = 2.0, noise: float = 0.3):
    """Training and test images, four a class, with their labels; and a model to train, the tiny CLIP at OpenAI's scale.

    An image is its class's feature, with noise, under a context that lies ``distance`` standard deviations of the
    initial one away from the learner's.
    """
    torch.manual_seed(seed)
    clip = load("tiny")[0]
    clip.logit_scale.data.fill_(SCALE)
    with contextlib.redirect_stdout(None):
        model = model_of(clip, names, 4)
    ctx = model.prompt_learner.ctx
    with torch.no_grad():
        start = ctx.clone()
        ctx += distance * 0.02 * torch.randn_like(ctx)
        centres = model.class_features()
        ctx.copy_(start)
    labels = torch.arange(len(names)).repeat_interleave(4)
    made = (centres[labels] + noise * normalize(torch.randn(len(labels), centres.shape[1])) for _ in range(2))
    train, test = ((normalize(features), labels) for features in made)
    return train, test, model


@torch.no_grad()
def accuracy(model: CustomCLIP, features: torch.Tensor, labels: torch.Tensor) -> float:
    found = logits(features, model.class_features(), model.logit_scale).argmax(1)
    return 100 * (found == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=21841)
    parser.add_argument("--sampled", type=int, nargs="+", default=[256, 512, 1024], help="classes of a step; 0: all")
    parser.add_argument("--n-ctx", type=int, default=16, help="context tokens")
    parser.add_argument("--csc", action="store_true", help="a context for each class")
    parser.add_argument("--turns", type=int, default=3, help="steps that are timed, of samples")
    parser.add_argument("--effect", action="store_true", help="measure accuracies on 1,000 synthetic classes instead")
    args = parser.parse_args()
    print(machine())
    if args.effect:
        effect(1000, [64, 128, 256, 512], 3, 150)
        return
    cost(args.classes, args.n_ctx, args.csc, args.sampled, args.turns + 1)


if __name__ == "__main__":
    main()
