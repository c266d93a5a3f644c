"""Feature sets: the features of very many images as a Lance data set on disk, read by row number.

The columns are ``feature`` (fp16, not normalised), ``label`` and ``path``. Rows are sorted by class, and the schema's
metadata has the number of rows of each class, so a few-shot draw reads no label.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from dassl.utils import UserError, check_at_least, derive_seed, error_reason

os.environ.setdefault("LANCE_LOG", "error")  # else Lance warns about every new data set
try:
    import lance
    import pyarrow  # noqa: F401
except ImportError as error:
    raise UserError('feature sets need Lance: pip install "coop-dassl[scale]", or pip install pylance') from error

METADATA_KEY = "coop_dassl"  # key of the schema's metadata: classnames, counts and settings of the extraction, as JSON


def open_lance_dataset(folder: Path):
    """Return the Lance data set in ``folder`` and its metadata (a dict); UserError if there is no feature set."""
    try:
        data = lance.dataset(str(folder))
        return data, json.loads(data.schema.metadata[METADATA_KEY.encode()])
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no set of tools/features.py extract: {error_reason(error)}") from error


class LanceFeatures:
    """A feature set: image features and labels, sorted by label. ``counts``: the number of images of each class."""

    def __init__(self, folder: str | os.PathLike):
        """Open the feature set in ``folder``; UserError if there is none."""
        self.data, metadata = open_lance_dataset(Path(folder).expanduser())
        self.classnames, self.counts = metadata["classnames"], metadata["counts"]

    def few_shot(self, shots: int, seed: int) -> list[int]:
        """Return, class by class, row numbers (from 0): ``shots`` random ones, or all of a class with fewer.

        The draw of a class depends on ``seed``, its name and its number of images. UserError for ``shots`` below 1.
        """
        check_at_least(shots, 1, "the number of shots")
        classes = zip(self.classnames, accumulate(self.counts), self.counts, strict=True)
        draws = ((random.Random(derive_seed(seed, name)), range(end - count, end)) for name, end, count in classes)
        return [row for generator, rows in draws for row in generator.sample(rows, min(shots, len(rows)))]

    def take(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (n, embed_dim), fp32, not normalised, and labels (n,), int64, of the given row numbers."""
        table = self.data.take(list(rows), columns=["feature", "label"])
        features = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        labels = table["label"].to_numpy().astype(np.int64)
        return torch.from_numpy(features).view(len(labels), -1), torch.from_numpy(labels)
