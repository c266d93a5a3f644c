"""Several processes at once over one data root and one feature cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safetensors import safe_open

from tests.stress.children import Child
from tests.stress.kills import AUGMENTED, Scenario, check, training

# Two processes each: twins that want the same at the same time, and others that want some of it.
VARIANTS = (
    ("CoOp", *AUGMENTED, "SEED", 1),
    ("CoOp", *AUGMENTED, "SEED", 2),
    ("CoOp", "TRAINER.COOP.N_CTX", 4),
    ("ZeroshotCLIP",),
)


def run(folder: Path, variants: int = len(VARIANTS)) -> int:
    """Start two processes of each of the first variants at once, then one of each elsewhere, and compare; returns how
    many features were computed.

    Raises:
        AssertionError: a run failed, ended otherwise than alone, or features were computed twice.
    """
    commands = []
    for trainer, *overrides in VARIANTS[:variants]:
        words = training(trainer, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, *overrides)
        commands.append(Scenario(trainer, "train", words).command)
    places = [folder / "together" / f"run{number}" for number in range(2 * variants)]
    children = [Child(commands[i % variants](place), place / "errors") for i, place in enumerate(places)]
    ended = [child.end() for child in children]
    for number, command in enumerate(commands):
        alone = folder / "alone" / f"run{number}"
        Child(command(alone), alone / "errors").end()
        for twin in (number, number + variants):
            check(ended[twin], alone, places[twin], f"process {twin} of {len(places)}")
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
