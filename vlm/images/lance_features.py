"""The features of very many images: a Lance data set on disk, read by row number and never loaded whole.

Its columns are ``feature`` (fp16, as the encoder gave it, not brought to length 1), ``label`` and ``path``. Rows lie
class by class and the schema's metadata counts them, so few shots are drawn without reading a label.
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

os.environ.setdefault("LANCE_LOG", "error")  # else Lance warns of each data set that is new
try:
    import lance
    import pyarrow  # noqa: F401
except ImportError as lacks:
    raise UserError('feature sets need Lance: pip install "coop-dassl[scale]", or pip install pylance') from lacks

METADATA_KEY = "coop_dassl"  # in the schema's metadata: classnames, counts and settings, as JSON


def open_lance_dataset(folder: Path):
    """Return the Lance data set in ``folder`` and its description; :class:`UserError` where there is none."""
    try:
        data = lance.dataset(str(folder))
        return data, json.loads(data.schema.metadata[METADATA_KEY.encode()])
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no set of tools/features.py extract: {error_reason(error)}") from error


class LanceFeatures:
    """Features of images and their labels, in rows class by class."""

    def __init__(self, folder: str | os.PathLike):
        self.data, description = open_lance_dataset(Path(folder).expanduser())
        self.classnames, self.counts = description["classnames"], description["counts"]

    def few_shot(self, shots: int, seed: int) -> list[int]:
        """Draw ``shots`` rows a class (all, where there are fewer), by (seed, its name, the number of its images)."""
        check_at_least(shots, 1, "the number of shots")
        classes = zip(self.classnames, accumulate(self.counts), self.counts, strict=True)
        draws = ((random.Random(derive_seed(seed, name)), range(end - count, end)) for name, end, count in classes)
        return [row for generator, rows in draws for row in generator.sample(rows, min(shots, len(rows)))]

    def take(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (n, dim), in fp32, and labels (n,) of rows."""
        table = self.data.take(list(rows), columns=["feature", "label"])
        features = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        labels = table["label"].to_numpy().astype(np.int64)
        return torch.from_numpy(features).view(len(labels), -1), torch.from_numpy(labels)
