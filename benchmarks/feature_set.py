"""Time to open a feature set of very many images (vlm/images/lance_features.py), and to read few shots of it.

python -m benchmarks.feature_set                          # 100 million rows of 16 numbers, 7 GB, in 1,000 fragments
python -m benchmarks.feature_set --rows 1000000 --dim 1024
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from dassl.utils import collect_env_info
from vlm.images.lance_features import METADATA_KEY, LanceFeatures, lance

CLASSES = 21_841  # the number of ImageNet-21k's classes
FRAGMENTS = 1_000  # files of the set: as many as tools/features.py extract writes for more than a million images


def write_set(folder: str, rows: int, dim: int) -> None:
    """Write a feature set of CLASSES classes to ``folder``; each of the ``dim`` numbers in row i is i % 2000."""
    counts = np.diff(rows * np.arange(CLASSES + 1) // CLASSES)
    metadata = {METADATA_KEY: json.dumps({"classnames": [*map(str, range(CLASSES))], "counts": counts.tolist()})}
    fields = {"path": pa.string(), "label": pa.int32(), "feature": pa.list_(pa.float16(), dim)}
    schema, size = pa.schema(fields, metadata), -(-rows // FRAGMENTS)

    def generate_fragments() -> Iterator[pa.RecordBatch]:
        """Yield one batch of rows for each file."""
        for start in range(0, rows, size):
            numbers = np.arange(start, min(start + size, rows))
            features = np.repeat((numbers % 2000).astype(np.float16), dim)
            label = np.searchsorted(np.cumsum(counts), numbers, side="right").astype(np.int32)
            columns = [np.char.mod("%d.jpg", numbers), label, pa.FixedSizeListArray.from_arrays(features, dim)]
            yield pa.RecordBatch.from_arrays([*map(pa.array, columns[:2]), columns[2]], schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, generate_fragments()), folder, max_rows_per_file=size)


def main() -> None:
    """Print the times to write, open and read a feature set of ``--rows`` simulated rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dim", type=int, default=16)
    args = parser.parse_args()
    print(collect_env_info())
    table = []

    def measure(step: str, function: Callable, *arguments: object) -> Any:
        """Return ``function(*arguments)``; append ``step`` and its seconds to the table."""
        start = time.perf_counter()
        result = function(*arguments)
        table.append([step, f"{time.perf_counter() - start:.3f}"])
        return result

    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/set"
        measure(f"writing {args.rows:,} rows of {args.dim} numbers", write_set, name, args.rows, args.dim)
        features = measure("opening it", LanceFeatures, name)
        for shots in (1, 16):
            rows = measure(f"drawing {shots} of each of {CLASSES:,} classes", features.few_shot, shots, 1)
            values, _ = measure(f"reading these {len(rows):,} rows", features.take, rows)
            assert (values[:, 0].numpy() == np.array(rows) % 2000).all()
    print(tabulate(table, ["", "seconds"], tablefmt="github"))


if __name__ == "__main__":
    main()
