"""Stored features of images as a data set: DATASET.FEATURES names their file (``datasets.feature_file``)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, temporary_seed

from .feature_file import read_feature_file
from .few_shot_split import MAX_VAL_SHOTS, exclude_items
from .protocol import FewShotDataset


def feature_paths(cfg: CfgNode, split: str, count: int) -> list[str]:
    """Return what stands for the images' paths: ROOT/clip.npz/train4/17 for row 17 of train4_features."""
    prefix = Path(cfg.DATASET.ROOT).expanduser() / Path(cfg.DATASET.FEATURES).name / split
    return [f"{prefix}{os.sep}{row}" for row in range(count)]


@DATASET_REGISTRY.register()
class Features(FewShotDataset):
    """The features of a file. With SEED 1, the shots are the file's ``train<NUM_SHOTS>``, if it has such a draw.

    Validation then takes the first min(NUM_SHOTS, 4) features of each class. Otherwise both are drawn by SEED: shots
    from ``train``, else from the largest draw of the file; without ``val``, validation takes what is left of these.
    """

    has_images = False

    def __init__(self, cfg: CfgNode):
        node, shots = cfg.DATASET, cfg.DATASET.NUM_SHOTS
        if node.FEWSHOT_FILE:
            raise UserError("DATASET.FEWSHOT_FILE lists images, and the data set Features has none: set NUM_SHOTS")
        file = read_feature_file(node.FEATURES)
        items = {}
        for split, (_, labels) in file.splits.items():
            pairs = zip(feature_paths(cfg, split, len(labels)), labels.tolist(), strict=True)
            items[split] = [Datum(path, label, 0, file.classnames[label]) for path, label in pairs]
        pool = max((name for name in items if name[:5] == "train"), key=lambda name: float(name[5:] or "inf"))
        draw = f"train{shots}" if f"train{shots}" in items else pool  # of SEED 1
        name = draw if cfg.SEED == 1 else pool
        train, val, val_shots = items[name], items.get("val"), min(shots, MAX_VAL_SHOTS)
        if shots >= 1:
            print(f"Shots: {name} of {file.path}")
            self.split_source = {"file": str(file.path), "fingerprint": file.sha256}
            if draw == pool and max(Counter(item.label for item in train).values()) <= shots:
                self.split_source["draws"] = 1  # that of every seed
            with temporary_seed(cfg.SEED):
                train = self.generate_fewshot_dataset(train, num_shots=shots)
                if val is None and not node.VAL_IS_TEST:
                    val = exclude_items(items[name], train) if name == pool else []
                if val and cfg.SEED == 1 and name == f"train{shots}":
                    val = [item for group in self.split_dataset_by_label(val).values() for item in group[:val_shots]]
                elif val:
                    val = self.generate_fewshot_dataset(val, num_shots=val_shots)
        val = items["test"] if val is None and node.VAL_IS_TEST else val or []
        classes = [Datum("", label, 0, name) for label, name in enumerate(file.classnames)]
        self._set_splits(node, classes, train, val, items["test"])
