"""CoOp's protocol, the same for all data sets: few shots for training and validation, base and new classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, check_availability, temporary_seed

from .few_shot_split import MAX_VAL_SHOTS, FewShotSplit, exclude_items


class FewShotDataset(DatasetBase):
    """Of all images, those that the keys of DATASET ask for.

    NUM_SHOTS images a class are drawn for training, then up to 4 for validation, in one stream of draws from SEED.
    Where there are no validation images (``val`` None), they are drawn from the training images that the few shots
    leave over, so choosing a model on them never touches the test set; with all images in training there are none.

    What was drawn is kept in the data set's folder; ``split_source`` names the file and the fingerprint of the listing
    (None where all images are taken).

    Raises:
        UserError: the labels do not count the classes (:func:`check_labels`), or a stored split is hostile.
    """

    split_source: dict[str, str] | None = None

    def __init__(self, cfg: CfgNode, train: list[Datum], test: list[Datum], val: list[Datum] | None = None):
        check_labels(train, val or [], test)
        val_is_test = val is None and cfg.DATASET.VAL_IS_TEST
        if (shots := cfg.DATASET.NUM_SHOTS) >= 1:
            kept = FewShotSplit(self.folder(cfg), shots, cfg.SEED, train, val)
            stored = kept.read()
            with temporary_seed(cfg.SEED):  # one stream of draws, in which also what is stored has its place
                split = {"train": self.generate_fewshot_dataset(train, num_shots=shots), **stored}
                if not val_is_test:
                    val = exclude_items(train, split["train"]) if val is None else val
                    drawn = self.generate_fewshot_dataset(val, num_shots=min(shots, MAX_VAL_SHOTS))
                    split.setdefault("val", drawn)
            if split.keys() <= stored.keys():
                print(f"Few-shot split: {kept.path}")
            else:
                kept.write(split)
            self.split_source = {"file": str(kept.path), "fingerprint": kept.fingerprint}
            train, val = split["train"], split.get("val")
        val = test if val_is_test else val or []
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        """Return the folder of the data set."""
        return Path(cfg.DATASET.ROOT).expanduser() / cls.dataset_dir


def check_labels(train: list[Datum], *others: list[Datum]) -> None:
    """Raise :class:`UserError` unless labels count the classes of ``train`` from 0 and each has one name: predictions
    are places in the list of names, so with a gap all accuracies would be wrong."""
    names = {item.label: item.classname for item in train}
    for due, label in enumerate(sorted(names)):
        if label != due:
            raise UserError(f"labels of training images must be 0, 1, 2, … without a gap; {label} stands for {due}")
    for item in (item for items in (train, *others) for item in items):
        if item.label not in names:
            raise UserError(f'{item.impath} is of class {item.label} ("{item.classname}"), which has no training image')
        if item.classname != names[item.label]:
            raise UserError(f'class {item.label} has two names, "{names[item.label]}" and "{item.classname}"')


def subsample_classes(*splits: list[Datum], subsample: str) -> list[list[Datum]]:
    """Keep all classes, the first half (``base``) or the second (``new``), with labels counted from 0 again.

    Of an odd number, ``base`` has the larger half (CoCoOp, Zhou et al., CVPR 2022, section 4.1).

    Raises:
        UserError: ``subsample``, which is DATASET.SUBSAMPLE_CLASSES, is none of these.
    """
    check_availability(subsample, ("all", "base", "new"), "DATASET.SUBSAMPLE_CLASSES")
    if subsample == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    if subsample == "new" and half == len(labels):
        raise UserError("DATASET.SUBSAMPLE_CLASSES is new, but the data set has one class, which is its base half")
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    new_label = {label: i for i, label in enumerate(labels[:half] if subsample == "base" else labels[half:])}
    kept = ([item for item in split if item.label in new_label] for split in splits)
    return [[Datum(i.impath, new_label[i.label], i.domain, i.classname) for i in split] for split in kept]


def draw_test_set(items: Collection, percent: float, key: Callable[..., int]) -> set:
    """Draw the part of the items that is for testing, at least one and not all, by ``key``, so always the same ones."""
    if not 0 < percent < 1:
        raise UserError(f"DATASET.TEST_PERCENT is {percent}; it must be between 0 and 1")
    count = min(max(round(len(items) * percent), 1), len(items) - 1)
    return set(sorted(items, key=key)[:count])
