"""Programs are killed (SIGKILL) at random moments; the same command must end as if nothing had happened.

Half of the moments are drawn from the time that the undisturbed run takes, half from its steps of writing: before or
after a file is synced or gets its final name.
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
from tests.stress.children import Child, Ended, counting, dying, program

TINY = ("--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml")
TINY += ("--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml", "--seed", 1)
AUGMENTED = ("INPUT.TRANSFORMS", '["random_resized_crop","random_flip","normalize"]')


class Scenario(NamedTuple):
    """A command below a folder of its own: ``{folder}`` stands for it in the arguments."""

    name: str
    module: str
    arguments: tuple[object, ...]

    def command(self, folder: Path) -> Callable[[], int]:
        return program(self.module, [str(word).replace("{folder}", str(folder)) for word in self.arguments])


def training(trainer: str, *overrides: object, place: str = "{folder}/..") -> tuple[object, ...]:
    """Arguments of train.py, with data and feature cache below ``place``: those of all runs in folders side by side."""
    flags = ("--root", f"{place}/data", "--output-dir", "{folder}/output", "--trainer", trainer)
    return (*TINY, *flags, "FEATURES.CACHE_DIR", f"{place}/cache", *overrides)


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
    Scenario("train.py ZeroshotCLIP, from the data on", "train", training("ZeroshotCLIP", place="{folder}")),
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
    """A run of a scenario that nobody kills."""

    def __init__(self, scenario: Scenario, folder: Path):
        self.scenario, self.folder = scenario, folder
        folder.mkdir()
        start = time.monotonic()
        command = partial(counting, folder / "writes", scenario.command(folder))
        ended = Child(command, folder / "errors").end()
        assert ended.code == 0, f"{scenario.name}: {ended}"
        self.seconds, self.writes = time.monotonic() - start, int((folder / "writes").read_text())


def kill_once(whole: Undisturbed, folder: Path, rng: random.Random) -> str:
    """Kill a run of the scenario, run it again to its end, and compare; returns the moment of the kill."""
    command = whole.scenario.command(folder)
    by_clock, ended = rng.random() < 0.5 or not whole.writes, None  # a sweep writes nothing, its processes do
    while ended is None or ended.code != -signal.SIGKILL:  # a run can be quicker than the undisturbed one
        shutil.rmtree(folder, ignore_errors=True)
        if by_clock:
            seconds = rng.uniform(0, whole.seconds)
            moment = f"after {seconds:.2f} of {whole.seconds:.2f} s"
            ended = Child(command, folder / "killed").kill_after(seconds)
        else:
            step = rng.randrange(whole.writes)
            moment = f"at step {step} of {whole.writes} of writing"
            ended = Child(partial(dying, step, command), folder / "killed").end()
    check(Child(command, folder / "errors").end(), whole.folder, folder, f"{whole.scenario.name}, killed {moment}")
    return moment


def check(ended: Ended, expected: Path, folder: Path, what: str) -> None:
    """Raise ``AssertionError`` unless a run came to its end with what ``expected`` holds."""
    assert ended.code == 0, f"{what}: exit code {ended.code}: {ended.errors}"
    have, should = results(folder), results(expected)
    assert have.keys() == should.keys(), f"{what}: {have.keys() ^ should.keys()}"
    for name, value in should.items():
        assert same(have[name], value), f"{what}: {name} differs"
    leftovers = list((folder / "output").rglob(f".*{TEMPORARY_SUFFIX}"))
    assert not leftovers, f"{what}: {leftovers}"


def results(folder: Path) -> dict[str, object]:
    """What a run or a sweep left below ``folder``: checkpoints and results."""
    output = folder / "output"
    found: dict[str, object] = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        name = path.relative_to(output).as_posix()
        if ".pth.tar" in path.name:
            state = torch.load(path, weights_only=True)
            found[name] = {key: state[key] for key in ("state_dict", "optimizer", "scheduler", "epoch", "best_result")}
        elif path.name == "result.json":
            record = read_json(path)
            found[name] = {key: record[key] for key in ("accuracy", "macro_f1")}
            log = (path.parent / "log.txt").read_text()
            found[f"{name}, log.txt"] = [line for line in log.splitlines() if line.startswith("* ")][-5:]
    return found


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(folder: Path, kills: int, seed: int, jobs: int = 2) -> Iterator[tuple[str, str]]:
    """Kill ``kills`` times; yields the scenario and the moment of each kill that was survived.

    Raises:
        AssertionError: one was not.
    """
    *quick, slow = range(len(SCENARIOS))  # the last one starts processes of its own, which import everything
    turns = [*quick * 4, slow]
    first = Scenario("first", "train", training("ZeroshotCLIP"))
    Child(first.command(folder / "first"), folder / "first/errors").end()  # from here on, imports and data are there
    write_sweep(folder / "sweep.yaml")
    wholes = {i: Undisturbed(SCENARIOS[i], folder / f"whole{i}") for i in dict.fromkeys(turns[:kills])}

    def trial(number: int) -> tuple[str, str]:
        whole, place = wholes[turns[number % len(turns)]], folder / f"kill{number}"
        moment = kill_once(whole, place, random.Random(f"{seed} {number}"))
        shutil.rmtree(place)
        return whole.scenario.name, moment

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(trial, range(kills))


def write_sweep(path: Path) -> None:
    words = " ".join(map(str, TINY))
    zero_shot = {"folder": "ZeroshotCLIP", "arguments": f"{words} --trainer ZeroshotCLIP --eval-only"}
    coop = {
        "folder": "CoOp{TRAINER.COOP.N_CTX}",
        "arguments": f"{words} --trainer CoOp DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 3",
        "grid": {"TRAINER.COOP.N_CTX": [16, 4]},
    }
    path.write_text(yaml.safe_dump({"output": "output", "threads": 1, "runs": [zero_shot, coop]}))
