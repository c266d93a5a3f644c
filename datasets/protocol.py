"""CoOp's evaluation protocol, the same for all data sets: few-shot splits, base and new classes, test sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, check_availability, temporary_seed

from .few_shot_split import MAX_VAL_SHOTS, FewShotSplit, exclude_items


class FewShotDataset(DatasetBase):
    """A data set from whose images the keys of DATASET select few shots and classes.

    In each class, NUM_SHOTS images are drawn for training, then as many for validation, up to 4, by one random
    generator seeded with SEED. Below 1, NUM_SHOTS selects all images. If ``val`` is None, the validation images are
    drawn from the training images that are no shots, so model selection does not use test images; with all images there
    are none. With VAL_IS_TEST, they are then the test images.

    The split is stored in the data set's folder (:class:`FewShotSplit`).

    Raises:
        UserError: the labels do not count the classes (:func:`check_labels`), or a stored pickle is refused.
    """

    split_source: dict[str, str] | None = None  # file and fingerprint of the few-shot split; None with all images

    def __init__(self, cfg: CfgNode, train: list[Datum], test: list[Datum], val: list[Datum] | None = None):
        check_labels(train, val or [], test)
        val_is_test = val is None and cfg.DATASET.VAL_IS_TEST
        if (shots := cfg.DATASET.NUM_SHOTS) >= 1:
            split_store = FewShotSplit(self.folder(cfg), shots, cfg.SEED, train, val)
            stored = split_store.read()
            with temporary_seed(cfg.SEED):  # training images are drawn even if stored: validation draws come after them
                split = {"train": self.generate_fewshot_dataset(train, num_shots=shots), **stored}
                if not val_is_test:
                    val = exclude_items(train, split["train"]) if val is None else val
                    drawn = self.generate_fewshot_dataset(val, num_shots=min(shots, MAX_VAL_SHOTS))
                    split.setdefault("val", drawn)
            if split.keys() <= stored.keys():
                print(f"Few-shot split: {split_store.path}")
            else:
                split_store.write(split)
            self.split_source = {"file": str(split_store.path), "fingerprint": split_store.fingerprint}
            train, val = split["train"], split.get("val")
        val = test if val_is_test else val or []
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        """Return the folder of the data set, ``<DATASET.ROOT>/<dataset_dir>``."""
        return Path(cfg.DATASET.ROOT).expanduser() / cls.dataset_dir


def check_labels(train: list[Datum], *other_splits: list[Datum]) -> None:
    """Raise :class:`UserError` unless labels are 0, 1, 2, …, all are in ``train``, and each has one class name.

    A prediction is a position in the list of class names, so a gap in the labels would make all accuracies wrong.
    """
    names = {item.label: item.classname for item in train}
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            problem = f"{label} stands for {expected}"
            raise UserError(f"labels of training images must be 0, 1, 2, … without a gap; {problem}")
    for item in (item for items in (train, *other_splits) for item in items):
        if item.label not in names:
            raise UserError(f'{item.impath} is of class {item.label} ("{item.classname}"), which has no training image')
        if item.classname != names[item.label]:
            raise UserError(f'class {item.label} has two names, "{names[item.label]}" and "{item.classname}"')


def subsample_classes(*splits: list[Datum], subsample: str) -> list[list[Datum]]:
    """Return each split with the images of ``all`` classes, or of their first half (``base``) or second (``new``).

    ``subsample`` (DATASET.SUBSAMPLE_CLASSES) says which. The classes are those of the first split. Labels of a half
    start at 0 again. With an odd number, ``base`` has one more (CoCoOp, Zhou et al., CVPR 2022, section 4.1).
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
    selected = ([item for item in split if item.label in new_label] for split in splits)
    return [[Datum(i.impath, new_label[i.label], i.domain, i.classname) for i in split] for split in selected]


def draw_test_set(items: Collection, percent: float, key: Callable[..., int]) -> set:
    """Return the items of lowest ``key(item)``, a hash: the fraction ``percent`` (0 to 1), at least one, not all."""
    if not 0 < percent < 1:
        raise UserError(f"DATASET.TEST_PERCENT is {percent}; it must be between 0 and 1")
    count = min(max(round(len(items) * percent), 1), len(items) - 1)
    return set(sorted(items, key=key)[:count])
