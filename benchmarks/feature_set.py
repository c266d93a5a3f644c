"""A feature set of very many images (vlm/images/lance_features.py): how long it takes to open, and to read few shots.

python -m benchmarks.feature_set                          # 100 million rows of 16 numbers, 7 GB, in 1,000 fragments
python -m benchmarks.feature_set --rows 1000000 --dim 1024
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from benchmarks.measure import machine
from vlm.images.lance_features import METADATA_KEY, LanceFeatures, lance

CLASSES, FRAGMENTS = 21_841, 1_000  # of ImageNet-21k; those of a large set


def simulate(folder: str, rows: int, dim: int) -> None:
    """Write a set of as many rows, whose features tell their row."""
    counts = np.diff(rows * np.arange(CLASSES + 1) // CLASSES)
    metadata = {METADATA_KEY: json.dumps({"classnames": [*map(str, range(CLASSES))], "counts": counts.tolist()})}
    fields = {"path": pa.string(), "label": pa.int32(), "feature": pa.list_(pa.float16(), dim)}
    schema, size = pa.schema(fields, metadata), -(-rows // FRAGMENTS)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, size):
            numbers = np.arange(start, min(start + size, rows))
            features = np.repeat((numbers % 2000).astype(np.float16), dim)
            label = np.searchsorted(np.cumsum(counts), numbers, side="right").astype(np.int32)
            columns = [np.char.mod("%d.jpg", numbers), label, pa.FixedSizeListArray.from_arrays(features, dim)]
            yield pa.RecordBatch.from_arrays([*map(pa.array, columns[:2]), columns[2]], schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), folder, max_rows_per_file=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dim", type=int, default=16)
    args = parser.parse_args()
    print(machine())
    table, start = [], 0.0

    def took(what: str) -> None:
        nonlocal start
        table.append([what, f"{time.perf_counter() - start:.3f}"])
        start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        simulate(f"{folder}/set", args.rows, args.dim)
        took(f"writing {args.rows:,} rows of {args.dim} numbers")
        features = LanceFeatures(f"{folder}/set")
        took("opening it")
        for shots in (1, 16):
            rows = features.few_shot(shots, seed=1)
            took(f"drawing {shots} of each of {CLASSES:,} classes")
            found, _ = features.take(rows)
            took(f"reading these {len(rows):,} rows")
            assert (found[:, 0].numpy() == np.array(rows) % 2000).all()
    print(tabulate(table, ["", "seconds"], tablefmt="github"))


if __name__ == "__main__":
    main()
