"""CoOp's evaluation protocol, the same for all data sets: few-shot splits, base and new classes, test sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, check_availability, file_digest, read_text, temporary_seed

from .few_shot_file import read_few_shot_file
from .few_shot_split import MAX_VAL_SHOTS, FewShotSplit, exclude_items
from .notes import print_class_notes


class FewShotDataset(DatasetBase):
    """A data set from whose images the keys of DATASET select few shots and classes.

    In each class, NUM_SHOTS images are drawn for training, then as many for validation, up to 4, by one random
    generator seeded with SEED. Below 1, NUM_SHOTS selects all images. If ``val`` is None, the validation images are
    drawn from the training images that are no shots, so model selection does not use test images; with all images there
    are none. With VAL_IS_TEST, they are then the test images.

    The split is stored in the data set's folder (``FewShotSplit``). FEWSHOT_FILE replaces it by the shots that a
    file lists, of any number. The classes are those of all training images, also where some have no shots.

    Raises:
        UserError: the labels do not count the classes (``check_labels``), or a stored pickle, FEWSHOT_FILE or
            BASE_CLASSES is refused.
    """

    split_source: dict[str, Any] | None = None  # file and fingerprint of the few-shot split; None with all images

    def __init__(self, cfg: CfgNode, train: list[Datum], test: list[Datum], val: list[Datum] | None = None):
        check_labels(train, val or [], test)
        node, all_train = cfg.DATASET, train
        val_is_test = val is None and node.VAL_IS_TEST
        if node.FEWSHOT_FILE:
            train, val = self._read_shots(cfg, train, test, val)
        elif (shots := node.NUM_SHOTS) >= 1:
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
        self._set_splits(node, all_train, train, test if val_is_test else val or [], test)

    def _set_splits(self, node: CfgNode, all_train: list[Datum], *splits: list[Datum]) -> None:
        """Keep the classes of ``all_train`` that ``node`` (DATASET) selects in ``splits``: train, val and test."""
        all_train, train, val, test = subsample_classes(
            all_train, *splits, subsample=node.SUBSAMPLE_CLASSES, base_classes=node.BASE_CLASSES
        )
        if not train:
            source = node.FEWSHOT_FILE or node.FEATURES
            raise UserError(f"{source} has no image of the {node.SUBSAMPLE_CLASSES} classes")
        super().__init__(train_x=train, val=val, test=test)
        self._lab2cname, self._classnames = self.get_lab2cname(all_train)
        self._num_classes = len(self._classnames)
        print_class_notes(self._classnames)
        self._print_missing_classes("training", train, "the run learns from the other classes alone")
        self._print_missing_classes("test", test, "they are not in the accuracy")

    def _read_shots(
        self, cfg: CfgNode, train: list[Datum], test: list[Datum], val: list[Datum] | None
    ) -> tuple[list[Datum], list[Datum]]:
        """Return the training and validation images of FEWSHOT_FILE; without ``val`` in it, draw validation images.

        As many of each class are drawn as the file has training images of the largest class, up to 4.
        """
        path = Path(cfg.DATASET.FEWSHOT_FILE).expanduser()
        split = read_few_shot_file(path, self.folder(cfg), train, val or [], test)
        labels = {item.impath: item.label for item in [*train, *(val or [])]}
        self.split_source = {
            "file": str(path),
            "fingerprint": file_digest(path),
            "pool": FewShotSplit(self.folder(cfg), 0, cfg.SEED, train, val).fingerprint,  # of all images
            "changed_labels": sum(item.label != labels[item.impath] for item in split["train"]),
        }
        largest = max(map(len, self.split_dataset_by_label(split["train"]).values()))
        if 1 <= cfg.DATASET.NUM_SHOTS != largest:
            shots = cfg.DATASET.NUM_SHOTS
            print(f"Note: DATASET.NUM_SHOTS {shots} does nothing: {path} has up to {largest} images a class")
        if "val" not in split:
            pool = exclude_items(train if val is None else val, split["train"])
            with temporary_seed(cfg.SEED):
                split["val"] = self.generate_fewshot_dataset(pool, num_shots=min(largest, MAX_VAL_SHOTS))
        return split["train"], split["val"]

    def _print_missing_classes(self, split: str, items: list[Datum], consequence: str) -> None:
        """Print a note that names the classes of which ``items``, the images of ``split``, has none."""
        labels = {item.label for item in items}
        if missing := [name for label, name in enumerate(self.classnames) if label not in labels]:
            classes = "class" if len(missing) == 1 else "classes"
            print(f"Note: no {split} images for the {classes} {', '.join(missing)}: {consequence}")

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        """Return the folder of the data set, ``<DATASET.ROOT>/<dataset_dir>``."""
        return Path(cfg.DATASET.ROOT).expanduser() / cls.dataset_dir


def check_labels(train: list[Datum], *other_splits: list[Datum]) -> None:
    """Raise ``UserError`` unless labels are 0, 1, 2, …, all are in ``train``, and each has one class name.

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


def subsample_classes(*splits: list[Datum], subsample: str, base_classes: str = "") -> list[list[Datum]]:
    """Return each split with the images of ``all`` classes, or of their first half (``base``) or second (``new``).

    ``subsample`` (DATASET.SUBSAMPLE_CLASSES) says which. The classes are those of the first split. Labels of a half
    start at 0 again. With an odd number, ``base`` has one more (CoCoOp, Zhou et al., CVPR 2022, section 4.1).
    ``base_classes`` (DATASET.BASE_CLASSES) is a file that names the base classes instead; all others are new.
    """
    check_availability(subsample, ("all", "base", "new"), "DATASET.SUBSAMPLE_CLASSES")
    if subsample == "all":
        if base_classes:
            print("Note: DATASET.BASE_CLASSES does nothing: DATASET.SUBSAMPLE_CLASSES is all, not base or new")
        return list(splits)
    names = {item.label: item.classname for item in splits[0]}
    labels = sorted(names)
    base = set(labels[: math.ceil(len(labels) / 2)])
    if base_classes:
        base_names = read_base_classes(Path(base_classes).expanduser(), set(names.values()))
        base = {label for label in labels if names[label] in base_names}
    selected_labels = [label for label in labels if (label in base) == (subsample == "base")]
    if not selected_labels:
        raise UserError("DATASET.SUBSAMPLE_CLASSES is new, but each class of the data set is a base class")
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    new_label = {label: i for i, label in enumerate(selected_labels)}
    selected = ([item for item in split if item.label in new_label] for split in splits)
    return [[Datum(i.impath, new_label[i.label], i.domain, i.classname) for i in split] for split in selected]


def read_base_classes(path: Path, classnames: set[str]) -> set[str]:
    """Return the class names in the lines of a file; UserError unless each is one of ``classnames`` and named once."""
    base: set[str] = set()
    for number, name in enumerate(map(str.strip, read_text(path).split("\n")), start=1):
        if name and name not in classnames:
            examples = ", ".join(get_close_matches(name, classnames) or sorted(classnames)[:3])
            problem = f'the data set has no class "{name}"; among its {len(classnames)} names are {examples}'
            raise UserError(f"{path}, line {number}: {problem}")
        if name in base:
            raise UserError(f'{path}, line {number}: the class "{name}" is named twice')
        base |= {name} - {""}
    if not base:
        raise UserError(f"{path} names no class; DATASET.BASE_CLASSES has one class name a line")
    return base


def draw_test_set(items: Collection, percent: float, key: Callable[..., int]) -> set:
    """Return the items of lowest ``key(item)``, a hash: the fraction ``percent`` (0 to 1), at least one, not all."""
    if not 0 < percent < 1:
        raise UserError(f"DATASET.TEST_PERCENT is {percent}; it must be between 0 and 1")
    count = min(max(round(len(items) * percent), 1), len(items) - 1)
    return set(sorted(items, key=key)[:count])
