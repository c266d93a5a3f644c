"""What a study costs on this machine: a cost model of few numbers, and how far it is from what is measured.

    python -m benchmarks.scale                    # all parts, about 15 minutes on two cores
    python -m benchmarks.scale --part images runs

Each line of the model is seconds = fixed + each x count. Its two numbers come from the smallest and the largest count
that is measured; the counts between, and what differs in another way, check it. Weights are random ones of RN50's
dimensions (text, images), or the tiny CLIP on the digits (runs, processes).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from benchmarks.image_encoder import visual_of
from benchmarks.measure import in_turns, machine
from benchmarks.text_encoder import steps
from dassl.utils import keep_memory
from tools import sweep
from vlm.image_encoder import image_encoder
from vlm.load import load

TEXT = {(10, 16): "fit", (100, 16): "check", (100, 4): "check", (300, 16): "check", (1000, 16): "fit"}
IMAGES = {16: "fit", 64: "check", 192: "fit"}
RUNS = {2: "fit", 4: "check", 6: "fit"}
PLACES = {"two at a time": ["--jobs", "2"], "on Ray, two at a time": ["--ray", "--jobs", "2"]}  # the largest of RUNS
BATCH = 128  # of fine-tuning, over all processes
MANY = 100_000_000  # images
DIM = 1024  # of RN50's features
ALONE = """
output: {folder}
threads: 1
arguments: >-
  --trainer CoOp --dataset-config-file configs/datasets/digits.yaml --config-file configs/trainers/CoOp/tiny.yaml
runs:
  - folder: seed{{SEED}}
    grid:
      SEED: {seeds}
"""


@dataclass(frozen=True)
class Line:
    """Seconds against a count."""

    fixed: float
    each: float

    @classmethod
    def through(cls, points: dict[float, float]) -> Line:
        """The line through the points (count, seconds) with the smallest and the largest count."""
        (low, at_low), (high, at_high) = min(points.items()), max(points.items())
        each = (at_high - at_low) / (high - low)
        return cls(at_low - each * low, each)

    def __call__(self, count: float) -> float:
        return self.fixed + self.each * count


def compare(counts: dict[str, float], seconds: dict[str, float], fitted: list[str], unit: str) -> Line:
    """Print what was measured beside what the line through the ``fitted`` ones tells."""
    line = Line.through({counts[name]: seconds[name] for name in fitted})
    rows = [
        {
            "": name,
            unit: f"{counts[name]:,}",
            "measured, s": f"{seconds[name]:.4g}",
            "model, s": f"{line(counts[name]):.4g}",
            "measured / model": "fitted" if name in fitted else f"{seconds[name] / line(counts[name]):.2f}",
        }
        for name in counts
    ]
    print(f"\nseconds = {line.fixed:.4g} + {line.each:.4g} x {unit}")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    return line


def text(turns: int) -> None:
    """A training step of a prompt learner against the tokens that it computes."""
    ours = {point: steps(*point, "imagenet") for point in TEXT}
    names = {point: f"{point[0]:,} classes, {point[1]} context tokens" for point in TEXT}
    times = in_turns({names[point]: (ours[point][0], keep_memory) for point in TEXT}, turns)
    counts = {names[point]: ours[point][2] for point in TEXT}
    fitted = [names[point] for point, use in TEXT.items() if use == "fit"]
    compare(counts, {name: t.median for name, t in times.items()}, fitted, "tokens")


def images(turns: int) -> None:
    """Encoding images with RN50, and what a hundred million take."""
    encoder = image_encoder(visual_of("RN50"), "random")
    noise = torch.randn(max(IMAGES), 3, 224, 224)
    encode: Callable[[int], Callable] = lambda count: lambda: list(encoder.encode(noise[:count]))  # noqa: E731
    times = in_turns({str(count): (encode(count), keep_memory) for count in IMAGES}, turns)
    fitted = [str(count) for count, use in IMAGES.items() if use == "fit"]
    seconds = {name: t.median for name, t in times.items()}
    line = compare({str(count): count for count in IMAGES}, seconds, fitted, "images")
    cores = torch.get_num_threads()
    print(
        f"{1 / line.each:.1f} images a second, {1 / line.each / cores:.1f} a core; {MANY:,} images: "
        f"{MANY * line.each * cores / 3600:,.0f} core hours, {MANY * (2 * DIM + 4) / 1e9:,.0f} GB in fp16 with labels"
    )


def runs(turns: int) -> None:
    """A sweep of short CoOp runs on the digits, one after another; the first sweep fills the cache."""
    with tempfile.TemporaryDirectory() as folder:

        def study(count: int, turn: list[int], flags: Sequence[str] = ("--jobs", "1")) -> Callable:
            def once() -> None:
                turn.append(0)
                file = Path(folder, "sweep.yaml")
                output = Path(folder, "".join([str(count), *flags, f"-{len(turn)}"]))
                file.write_text(ALONE.format(folder=output, seeds=list(range(1, count + 1))))
                keys = ["OPTIM.MAX_EPOCH", "5", "FEATURES.CACHE_DIR", f"{folder}/cache"]
                if sweep.main([str(file), "--root", f"{folder}/data", *flags, *keys]):
                    raise RuntimeError("a run failed")

            return once

        computations = {str(count): (study(count, []), keep_memory) for count in RUNS}
        most = max(RUNS)
        computations |= {name: (study(most, [], flags), keep_memory) for name, flags in PLACES.items()}
        times = in_turns(computations, turns)
    fitted = [str(count) for count, use in RUNS.items() if use == "fit"]
    seconds = {name: t.median for name, t in times.items()}
    line = compare({str(count): count for count in RUNS}, {str(c): seconds[str(c)] for c in RUNS}, fitted, "runs")
    half = line(most / 2)
    for name in PLACES:
        print(
            f"{most} runs {name}: {seconds[name]:.1f} s; half of them one by one: {half:.1f} s; the rest, "
            f"{seconds[name] - half:.1f} s, is the start of the processes"
        )


def processes(turns: int) -> None:
    """A step of fine-tuning the tiny CLIP, the batch in one process and in two, a thread each; by their logs."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", "--root", f"{folder}/data", "--trainer", "CLIPFineTune", "--seed", "1"]
        command += ["--dataset-config-file", "configs/datasets/digits.yaml"]
        command += ["--config-file", "configs/trainers/CLIPFineTune/tiny.yaml", "OPTIM.MAX_EPOCH", "3"]
        command += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(BATCH), "TEST.NO_TEST", "True", "TRAIN.PRINT_FREQ", "1"]
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(turns):
            for count, steps_ in found.items():
                output = Path(folder, f"{count}-{time.time_ns()}")
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                subprocess.run(
                    [sys.executable, *launcher, *command[:1], "--output-dir", str(output), *command[1:]],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    check=True,
                    capture_output=True,
                )
                log = (output / "log.txt").read_text()
                steps_ += map(float, re.findall(r"epoch \[[23]/3\].* time (\S+) ", log))
    medians = {count: statistics.median(seconds) for count, seconds in found.items()}
    parameters = sum(parameter.numel() for parameter in load("tiny")[0].parameters())
    print(
        f"\nA batch of {BATCH} pairs: {medians[1]:.3f} s in one process, {medians[2]:.3f} s in two, "
        f"{medians[1] / medians[2]:.2f} times as fast; each step exchanges the gradients of {parameters:,} parameters"
    )


PARTS = {"text": text, "images": images, "runs": runs, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    for part in args.part:
        PARTS[part](args.turns)


if __name__ == "__main__":
    main()
