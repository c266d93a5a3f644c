"""Several processes at once over one data root and one feature cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safetensors import safe_open

from tests.stress.children import Child
from tests.stress.kills import AUGMENTED, Scenario, check, training

# Each runs twice at the same time: twins need the same features, other variants some of them.
VARIANTS = (
    ("CoOp", *AUGMENTED, "SEED", 1),
    ("CoOp", *AUGMENTED, "SEED", 2),
    ("CoOp", "TRAINER.COOP.N_CTX", 4),
    ("ZeroshotCLIP",),
)


def run(folder: Path, variants: int = len(VARIANTS)) -> int:
    """Run two processes of each variant at once, then each variant alone, and compare; return the number of features.

    Raises:
        AssertionError: a run failed, or differs from the run alone, or features were computed twice.
    """
    commands = []
    for trainer, *overrides in VARIANTS[:variants]:
        words = training(trainer, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, *overrides)
        commands.append(Scenario(trainer, "train", words).command)
    run_folders = [folder / "together" / f"run{number}" for number in range(2 * variants)]
    children = [Child(commands[i % variants](path), path / "errors") for i, path in enumerate(run_folders)]
    ended = [child.end() for child in children]
    for number, command in enumerate(commands):
        alone = folder / "alone" / f"run{number}"
        Child(command(alone), alone / "errors").end()
        for twin in (number, number + variants):
            check(ended[twin], alone, run_folders[twin], f"process {twin} of {len(run_folders)}")
    counts_together, counts_alone = (Counter(read_keys(folder / name / "cache")) for name in ("together", "alone"))
    assert max(counts_together.values()) == 1, "the same features were computed twice"
    assert counts_together == counts_alone, "the processes together computed other features than one by one"
    return len(counts_together)


def read_keys(cache: Path) -> list[bytes]:
    """Return the keys of the features in all files of a feature cache."""
    keys = []
    for path in cache.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys += [row.numpy().tobytes() for row in file.get_tensor("keys")]
    return keys
