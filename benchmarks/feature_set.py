"""A feature set of a hundred million images (vlm/feature_set.py): how long it takes to open, and to read few shots.

    python -m benchmarks.feature_set                 # sparse files in the temporary folder: 205 GB that take no room

The features are holes in the files, which read as zeros without the disk. So the seconds are those of this program and
of the system's memory maps; on top of them a disk takes one random read a feature, if it is not in memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from vlm.feature_set import COMMAND, DESCRIPTION, FORMAT, Description, FeatureSet

IMAGES, SHARDS, DIM, CLASSES = 100_000_000, 100, 1024, 21_841  # of RN50; as many classes as ImageNet-21k


def simulate(folder: Path, images: int = IMAGES, shards: int = SHARDS, dim: int = DIM, classes: int = CLASSES) -> None:
    """Write a set whose shards have the size and the header they would have, and nothing else."""
    counts = [images * (label + 1) // classes - images * label // classes for label in range(classes)]
    told = {
        "settings": {"format": FORMAT, "dim": dim, "shards": shards},
        "images": images,
        "classes": [[f"class {label}", count] for label, count in enumerate(counts)],
        "listing": {"parts": [""] * shards, "offsets": [0] * (shards + 1)},
        COMMAND: "none: it is simulated",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).write_text(json.dumps(told))
    described = Description(folder)
    for shard in range(1, shards + 1):
        form = described.form(shard)
        with open(described.path(shard), "wb") as file:
            file.write(form.header("f" * 32))
            file.truncate(form.size)


def room(folder: Path) -> tuple[int, int]:
    """Bytes of a folder's files, and those that they take on the disk."""
    stats = [path.stat() for path in folder.iterdir()]
    return sum(stat.st_size for stat in stats), 512 * sum(stat.st_blocks for stat in stats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    args = parser.parse_args()
    rows, start = [], 0.0

    def took(what: str) -> None:
        nonlocal start
        rows.append([what, f"{time.perf_counter() - start:.3f}"])
        start = time.perf_counter()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "set")
        simulate(folder, args.images)
        size, taken = room(folder)
        print(
            f"{args.images:,} features of {DIM} numbers in {SHARDS} shards: {size / 1e9:,.1f} GB, {taken:,} bytes taken"
        )
        start = time.perf_counter()
        features = FeatureSet(folder)
        took("opening it")
        for shots in (1, 16):
            drawn = features.few_shot(shots, seed=1)
            took(f"drawing {shots} of each of {CLASSES:,} classes")
            for at in range(0, len(drawn), 4096):
                features.features(drawn[at : at + 4096])
            took(f"reading these {len(drawn):,} features")
    print(tabulate(rows, ["", "seconds"], tablefmt="github"))


if __name__ == "__main__":
    main()
