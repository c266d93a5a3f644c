"""Reads DATASET.FEWSHOT_FILE, a JSON file that lists exactly the images to train on, in the form of a stored split.

    {"train": [["images/ant/1.jpg", 0, "ant"], …], "val": […]}

An entry is a path below the data set's folder, a label, and a class name; "val" may be absent. Other keys are ignored.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dassl.data.datasets import Datum
from dassl.utils import UserError, read_json, relpath

from .few_shot_split import Split
from .split_pickle import FEW_SHOT_SPLITS, is_split_entry


def read_few_shot_file(path: Path, folder: Path, train: list[Datum], val: list[Datum], test: list[Datum]) -> Split:
    """Return the images of each split in the file ``path``, with the labels that it gives them, in its order.

    ``train``, ``val`` and ``test`` are the images of the data set in ``folder``. A label may differ from theirs, and an
    image may be listed several times.

    Raises:
        UserError: the file has another form, or an entry is a test image, no image of the data set or of an unknown
            class; the message names the entry. Or a validation image is a training image, too.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("train"):
        raise UserError(f'{path} has no list "train" of images, [path, label, class name]')
    images = {item.impath: item for item in [*train, *val]}
    test_paths, classes = {item.impath for item in test}, {item.label: item.classname for item in train}
    split: Split = {}
    for key in (key for key in FEW_SHOT_SPLITS if key in content):
        if not isinstance(content[key], list):
            raise UserError(f"{path}: {key} must be a list of images")
        split[key] = []
        for number, entry in enumerate(content[key]):
            where = f"{path}, {key}[{number}]"
            if not is_split_entry(entry):
                raise UserError(f"{where} must be [path, label, class name]; got {entry!r}")
            name, label, classname = entry
            impath = str(folder / name)
            if impath in test_paths:
                raise UserError(f"{where}: {name!r} is a test image, which must not be trained on")
            if impath not in images:
                example = f"paths are below {folder}, such as {relpath(train[0].impath, folder)}"
                raise UserError(f"{where}: {name!r} is no training image of the data set; {example}")
            if classes.get(label) != classname:
                problem = f"class {label} is {classes[label]!r}" if label in classes else "there is no such label"
                raise UserError(f"{where}: the class is {label} {classname!r}, but in the data set {problem}")
            split[key].append(Datum(impath, label, images[impath].domain, classname))
    shots = {item.impath for item in split["train"]}
    if overlap := [item.impath for item in split.get("val", []) if item.impath in shots]:
        raise UserError(f"{path}: {overlap[0]} is in train and in val")
    _print_summary(path, split["train"], images)
    return split


def _print_summary(path: Path, shots: list[Datum], images: dict[str, Datum]) -> None:
    """Print the numbers of images, of images in a class and of changed labels; ``images``: the data set's, by path."""
    counts = Counter(item.label for item in shots).values()
    different = {item.impath for item in shots}
    total = f"{len(shots):,} images" + (f" ({len(different):,} different)" if len(different) < len(shots) else "")
    per_class = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    changed = sum(item.label != images[item.impath].label for item in shots)
    labels = "1 label differs" if changed == 1 else f"{changed:,} labels differ"
    print(f"Few-shot file: {path}, {total}, {per_class} a class, {labels} from the data set's")
