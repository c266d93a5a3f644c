"""Programs are killed (SIGKILL) at random moments; the same command must resume to the results of an undisturbed run.

Half of the moments are random times of the undisturbed run, half are random write steps: before or after a file is
synced or gets its final name.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from dassl.utils import read_json
from dassl.utils.files import TEMPORARY_SUFFIX
from tests.common import REPOSITORY
from tests.stress.children import Child, Ended, count_writes, die_at_write, make_program

TINY = ("--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml")
TINY += ("--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml", "--seed", 1)
AUGMENTED = ("INPUT.TRANSFORMS", '["random_resized_crop","random_flip","normalize"]')


class Scenario(NamedTuple):
    """A command of a program; ``{folder}`` in its arguments stands for the folder of a run."""

    name: str
    module: str
    arguments: tuple[object, ...]

    def command(self, folder: Path) -> Callable[[], int]:
        """Return a function that runs the command in ``folder`` and returns the exit code."""
        return make_program(self.module, [str(word).replace("{folder}", str(folder)) for word in self.arguments])


def training(trainer: str, *overrides: object, shared: str = "{folder}/..") -> tuple[object, ...]:
    """Return arguments of train.py; neighbouring run folders share the data and the feature cache below ``shared``."""
    flags = ("--root", f"{shared}/data", "--output-dir", "{folder}/output", "--trainer", trainer)
    return (*TINY, *flags, "FEATURES.CACHE_DIR", f"{shared}/cache", *overrides)


SWEEP = ("{folder}/../sweep.yaml", "--root", "{folder}/../data", "--output-dir", "{folder}/output")
SCENARIOS = (
    Scenario(
        "train.py CoOp, a checkpoint every second epoch, best_val",
        "train",
        training(
            *("CoOp", *AUGMENTED, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 6, "DATALOADER.TRAIN_X.BATCH_SIZE", 8),
            *("TRAIN.CHECKPOINT_FREQ", 2, "TRAIN.KEEP_CHECKPOINTS", 2, "TEST.FINAL_MODEL", "best_val"),
        ),
    ),
    Scenario(
        "train.py CoOp, one checkpoint that is written over",
        "train",
        training("CoOp", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_MINUTES", 1e-9),
    ),
    Scenario("train.py ZeroshotCLIP, from the data on", "train", training("ZeroshotCLIP", shared="{folder}")),
    Scenario(
        "train.py CLIPFineTune, loading in processes of its own",
        "train",
        training(
            *("CLIPFineTune", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1),
            *("DATALOADER.NUM_WORKERS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, "TRAINER.FINETUNE.PARTS", "['lora']"),
            *("TEST.SPLIT", "val"),
        ),
    ),
    Scenario("tools/sweep.py", "tools.sweep", (*SWEEP, "--jobs", 1, "FEATURES.CACHE_DIR", "{folder}/../cache")),
    Scenario("two at a time", "tools.sweep", (*SWEEP, "--jobs", 2, "FEATURES.CACHE_DIR", "{folder}/../cache")),
)


class Undisturbed:
    """A run of a scenario without a kill, its duration in seconds and its number of write steps."""

    def __init__(self, scenario: Scenario, folder: Path):
        self.scenario, self.folder = scenario, folder
        folder.mkdir()
        start = time.monotonic()
        command = partial(count_writes, folder / "writes", scenario.command(folder))
        ended = Child(command, folder / "errors").end()
        assert ended.code == 0, f"{scenario.name}: {ended}"
        self.seconds, self.writes = time.monotonic() - start, int((folder / "writes").read_text(encoding="utf-8"))


def kill_once(undisturbed: Undisturbed, folder: Path, rng: random.Random) -> str:
    """Kill a run of the scenario, resume it and compare its results; return a description of the moment."""
    command = undisturbed.scenario.command(folder)
    by_clock, ended = rng.random() < 0.5 or not undisturbed.writes, None  # a sweep itself writes no file
    while ended is None or ended.code != -signal.SIGKILL:  # a run can be quicker than the undisturbed one
        shutil.rmtree(folder, ignore_errors=True)
        if by_clock:
            seconds = rng.uniform(0, undisturbed.seconds)
            moment = f"after {seconds:.2f} of {undisturbed.seconds:.2f} s"
            ended = Child(command, folder / "killed").kill_after(seconds)
        else:
            step = rng.randrange(undisturbed.writes)
            moment = f"at step {step} of {undisturbed.writes} of writing"
            ended = Child(partial(die_at_write, step, command), folder / "killed").end()
    check(
        Child(command, folder / "errors").end(),
        undisturbed.folder,
        folder,
        f"{undisturbed.scenario.name}, killed {moment}",
    )
    return moment


def check(ended: Ended, expected: Path, folder: Path, name: str) -> None:
    """Raise ``AssertionError`` unless a run ended with code 0 and the results in the folder ``expected``."""
    assert ended.code == 0, f"{name}: exit code {ended.code}: {ended.errors}"
    actual, expected_results = read_results(folder), read_results(expected)
    assert actual.keys() == expected_results.keys(), f"{name}: {actual.keys() ^ expected_results.keys()}"
    for file, value in expected_results.items():
        assert is_same(actual[file], value), f"{name}: {file} differs"
    leftovers = list((folder / "output").rglob(f".*{TEMPORARY_SUFFIX}"))
    assert not leftovers, f"{name}: {leftovers}"


def read_results(folder: Path) -> dict[str, object]:
    """Return the checkpoints, records and last log lines of a run or a sweep below ``folder``, by file name."""
    output = folder / "output"
    contents: dict[str, object] = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        name = path.relative_to(output).as_posix()
        if ".pth.tar" in path.name:
            state = torch.load(path, weights_only=True)
            contents[name] = {
                key: state[key] for key in ("state_dict", "optimizer", "scheduler", "epoch", "best_result")
            }
        elif path.name == "result.json":
            record = read_json(path)
            contents[name] = {key: record[key] for key in ("accuracy", "macro_f1")}
            log = (path.parent / "log.txt").read_text(encoding="utf-8")
            contents[f"{name}, log.txt"] = [line for line in log.splitlines() if line.startswith("* ")][-5:]
    return contents


def is_same(one: object, other: object) -> bool:
    """Return whether nested containers of tensors and plain values are equal."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


def run(folder: Path, kills: int, seed: int, jobs: int = 2) -> Iterator[tuple[str, str]]:
    """Kill ``kills`` runs, ``jobs`` at a time; yield the scenario and the moment of each kill that was survived.

    Raises:
        AssertionError: a resumed run differs from the undisturbed one.
    """
    *quick, slow = range(len(SCENARIOS))  # the last one starts processes that import everything
    turns = [*quick * 4, slow]
    first = Scenario("first", "train", training("ZeroshotCLIP"))
    Child(first.command(folder / "first"), folder / "first/errors").end()  # prepares the imports and the data
    write_sweep(folder / "sweep.yaml")
    undisturbed = {i: Undisturbed(SCENARIOS[i], folder / f"whole{i}") for i in dict.fromkeys(turns[:kills])}

    def kill(number: int) -> tuple[str, str]:
        expected, run_folder = undisturbed[turns[number % len(turns)]], folder / f"kill{number}"
        moment = kill_once(expected, run_folder, random.Random(f"{seed} {number}"))
        shutil.rmtree(run_folder)
        return expected.scenario.name, moment

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(kill, range(kills))


def write_sweep(path: Path) -> None:
    """Write a sweep file of three runs: zero-shot CLIP, and CoOp with 16 and with 4 context tokens."""
    words = " ".join(map(str, TINY))
    zero_shot = {"folder": "ZeroshotCLIP", "arguments": f"{words} --trainer ZeroshotCLIP --eval-only"}
    coop = {
        "folder": "CoOp{TRAINER.COOP.N_CTX}",
        "arguments": f"{words} --trainer CoOp DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 3",
        "grid": {"TRAINER.COOP.N_CTX": [16, 4]},
    }
    path.write_text(yaml.safe_dump({"output": "output", "threads": 1, "runs": [zero_shot, coop]}), encoding="utf-8")
