"""Eight processes at once over one data root and one feature cache; and two in one output directory."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from safetensors import safe_open

from tests.stress.children import Child, Ended
from tests.stress.kills import AUGMENTED, Scenario, check, training

PROCESSES = 8
# Two processes each: twins that want the same at the same time, and others that want some of it.
VARIANTS = (
    ("CoOp", *AUGMENTED, "SEED", 1),
    ("CoOp", *AUGMENTED, "SEED", 2),
    ("CoOp", "TRAINER.COOP.N_CTX", 4),
    ("ZeroshotCLIP",),
)


def scenario(number: int) -> Scenario:
    """The run ``number``; ``{folder}`` holds its output, and data and cache of all are beside that."""
    trainer, *overrides = VARIANTS[number % len(VARIANTS)]
    words = training(trainer, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 4, *overrides)
    words = [str(word).replace("{folder}/data", "{folder}/../data") for word in words]
    return Scenario(trainer, "train", tuple(word.replace("{folder}/cache", "{folder}/../cache") for word in words))


def run(folder: Path) -> int:
    """Start all at once, then one by one elsewhere, and compare; returns how many features were computed.

    Raises:
        AssertionError: a run failed, ended otherwise than alone, or features were computed twice.
    """
    places = [folder / "together" / f"run{number}" for number in range(PROCESSES)]
    children = [Child(scenario(i).command(place), place / "errors") for i, place in enumerate(places)]
    ended = [child.end() for child in children]
    for number, (place, end) in enumerate(zip(places, ended, strict=True)):
        if number < len(VARIANTS):
            alone = folder / "alone" / f"run{number}"
            Child(scenario(number).command(alone), alone / "errors").end()
        check(end, folder / "alone" / f"run{number % len(VARIANTS)}", place, f"process {number} of {PROCESSES}")
    together, alone = (Counter(keys_in(folder / name / "cache")) for name in ("together", "alone"))
    assert max(together.values()) == 1, "the same features were computed twice"
    assert together == alone, "other features were computed than one by one"
    return len(together)


def keys_in(cache: Path) -> list[bytes]:
    """The keys in all files of a feature cache."""
    keys = []
    for path in cache.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys += [row.numpy().tobytes() for row in file.get_tensor("keys")]
    return keys


def second_in_one_folder(folder: Path) -> tuple[int, Ended]:
    """Start a run, and another into the same output directory; returns the first one's process and the second's end.

    Raises:
        AssertionError: the first one did not go on unharmed.
    """
    words = training("CoOp", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2000, "TEST.NO_TEST", True)
    endless = Scenario("endless", "train", words)
    first = Child(endless.command(folder), folder / "first")
    log = folder / "output/log.txt"
    while not (log.is_file() and "epoch [2/" in log.read_text()):
        time.sleep(0.02)
        assert first.process.is_alive(), first.end()
    before = log.stat().st_ino
    second = Child(endless.command(folder), folder / "second").end()
    assert first.process.is_alive()
    assert log.stat().st_ino == before
    first.kill_after(0)
    return first.process.pid, second
