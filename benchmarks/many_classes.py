"""Time and peak memory of CoOp over ImageNet-21k's 21,841 class names with RN50: set-up and a training step.

    python -m benchmarks.many_classes                               # 256, 512 and 1024 sampled classes; minutes
    python -m benchmarks.many_classes --sampled 512 0 --n-ctx 4     # 0: all classes, 10 minutes and more a step

Peak memory is that of a new process after two steps of SGD over a batch of 32, including 0.4 GB for CLIP. With --csc,
each class has its own context. Weights are random.
"""

from __future__ import annotations

import argparse
import time

import torch
from tabulate import tabulate
from yacs.config import CfgNode

from benchmarks.measure import measure_peak_memory
from dassl.utils import collect_env_info, tune_malloc
from tools.fix_imagenet import load_imagenet21k_names
from tools.random_weights import build_random_clip
from trainers.coop import CustomCLIP
from trainers.sampled_softmax import SampledSoftmax
from vlm.openai import build_model

BATCH = 32  # images: CoOp's batches of training images


def measure_steps(classes: int, n_ctx: int, csc: bool, size: int, turns: int) -> dict[str, float]:
    """Return, by column, the seconds of set-up for the first ``classes`` of ImageNet-21k, and of a CoOp training step.

    A step is over ``size`` sampled classes, or all (0); its time is the median of ``turns`` steps without the first
    (of one step, its time). ``n_ctx``: context tokens. ``csc``: whether each class has its own context.
    """
    tune_malloc()
    torch.manual_seed(0)
    clip, times = build_model(build_random_clip("RN50", 0)).float().requires_grad_(False), []
    start = time.perf_counter()
    node = CfgNode({"N_CTX": n_ctx, "CTX_INIT": "", "CSC": csc, "CLASS_TOKEN_POSITION": "end"})
    model = CustomCLIP(list(load_imagenet21k_names().values())[:classes], clip, node)
    set_up = time.perf_counter() - start
    optimizer = torch.optim.SGD([model.prompt_learner.ctx], lr=0.002, momentum=0.9, weight_decay=5e-4)
    features, labels = torch.randn(BATCH, 1024), torch.randint(classes, (BATCH,))
    for turn in range(turns):
        start = time.perf_counter()
        if size:
            loss = SampledSoftmax(size, classes, 0)(model, features, labels, 0, turn)[0]
        else:
            loss = torch.nn.functional.cross_entropy(model(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return {"set-up, s": set_up, "a step, s": sorted(times[1:] or times)[len(times[1:]) // 2]}


def main() -> None:
    """Print a table: time and memory of a CoOp step over all classes and over samples of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=21841)
    parser.add_argument("--sampled", type=int, nargs="+", default=[256, 512, 1024], help="classes of a step; 0: all")
    parser.add_argument("--n-ctx", type=int, default=16, help="context tokens")
    parser.add_argument("--csc", action="store_true", help="a context for each class")
    parser.add_argument("--turns", type=int, default=3, help="steps that are timed, of samples")
    args = parser.parse_args()
    print(collect_env_info())
    rows = []
    for size in args.sampled:
        turns = args.turns + 1 if size else 1
        row = {
            "classes": args.classes,
            "of a step": size or args.classes,
            "context tokens": args.n_ctx,
            "CSC": args.csc,
        }
        seconds = measure_steps(args.classes, args.n_ctx, args.csc, size, turns)
        peak = measure_peak_memory(measure_steps, args.classes, args.n_ctx, args.csc, size, min(turns, 2))
        rows.append({**row, **{key: f"{value:.3g}" for key, value in seconds.items()}, "peak GB": f"{peak:.2f}"})
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    main()
