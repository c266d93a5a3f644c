"""Images in class folders, as ImageNet comes: ``images/{train,val}/<folder>/…`` and ``classnames.txt``."""

from __future__ import annotations

import math
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS
from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, check_availability, listdir_nohidden, seeded

CLASSNAMES = "classnames.txt"
MAX_VAL_SHOTS = 4  # CoOp's rule: at most 4 validation images a class
SUBSAMPLES = ("all", "base", "new")


class ClassFolders(DatasetBase):
    """A data set below ``<DATASET.ROOT>/<dataset_dir>``, with however many class folders there are.

    The folder ``val`` is the test set. The validation set is drawn from the training images that the few shots leave
    over, so choosing a model on it never touches the test set; with all images in training there is none.

    Raises:
        UserError: a folder or name is missing, a class is empty, or a file is no image; the message names it.
    """

    def __init__(self, cfg: CfgNode):
        check_availability(cfg.DATASET.SUBSAMPLE_CLASSES, SUBSAMPLES, "DATASET.SUBSAMPLE_CLASSES")
        self.base = Path(cfg.DATASET.ROOT).expanduser() / self.dataset_dir
        classnames = self._classnames_by_folder()
        train, test = self._read("train", classnames), self._read("val", classnames)
        val = None
        if (shots := cfg.DATASET.NUM_SHOTS) >= 1:
            with seeded(cfg.SEED):
                chosen = self.generate_fewshot_dataset(train, num_shots=shots)
                taken = {item.impath for item in chosen}
                left = [item for item in train if item.impath not in taken]
                val = self.generate_fewshot_dataset(left, num_shots=min(shots, MAX_VAL_SHOTS))
            train = chosen
        train, val, test = subsample_classes(train, val or [], test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def _read(self, split: str, classnames: dict[str, str]) -> list[Datum]:
        """The images of a split, by class folder and name; labels count the class folders in sorted order."""
        root = self.base / "images" / split
        items = []
        for label, folder in enumerate(classnames):
            names = listdir_nohidden(root / folder, sort=True)
            if not names:
                raise UserError(f"the class folder {root / folder} is empty")
            for name in names:
                if not name.lower().endswith(IMG_EXTENSIONS):
                    raise UserError(f"{root / folder / name} is not an image ({', '.join(IMG_EXTENSIONS)}); remove it")
                items.append(Datum(root / folder / name, label, classname=classnames[folder]))
        return items

    def _classnames_by_folder(self) -> dict[str, str]:
        """The class folders in sorted order with their names; both splits must have the same ones."""
        folders = {split: self._class_folders(split) for split in ("train", "val")}
        for split, other in (("train", "val"), ("val", "train")):
            if missing := sorted(set(folders[other]) - set(folders[split])):
                raise UserError(
                    f"{self.base / 'images' / split} lacks class folders that {other} has: {', '.join(missing)}"
                )
        names = read_classnames(self.base / CLASSNAMES)
        if nameless := [folder for folder in folders["train"] if folder not in names]:
            raise UserError(f"{self.base / CLASSNAMES} has no name for the folders {', '.join(nameless)}")
        return {folder: names[folder] for folder in folders["train"]}

    def _class_folders(self, split: str) -> list[str]:
        root = self.base / "images" / split
        if not root.is_dir():
            raise UserError(
                f"no folder {root}. DATASET.ROOT (--root) must hold {self.dataset_dir}/images/train and …/val with one "
                f"folder a class{self.how_to_get}"
            )
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise UserError(f"{root} has no class folders")
        return folders

    how_to_get = ""  # what to do where the data is missing


def read_classnames(path: Path) -> dict[str, str]:
    """Folder name -> class name, from lines such as ``n01440764 tench``.

    Raises:
        UserError: the file is missing, or a line is not of that form.
    """
    if not path.is_file():
        raise UserError(
            f"no {path}: it names the class folders, one a line (n01440764 tench). "
            f"tools/fix_imagenet.py --root {path.parent.parent} writes it for ImageNet's folders"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Notepad puts a mark before the first line
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    names = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        folder, _, name = line.strip().partition(" ")
        if not name.strip():
            raise UserError(f'{path}, line {number}: "{line}" is not "<folder> <class name>"')
        names[folder] = name.strip()
    return names


def subsample_classes(*splits: list[Datum], subsample: str) -> list[list[Datum]]:
    """Keep all classes, the first half (``base``) or the second (``new``), with labels counted from 0 again.

    Of an odd number, ``base`` has the larger half (CoCoOp, Zhou et al., CVPR 2022, section 4.1).
    """
    if subsample == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    new_label = {label: i for i, label in enumerate(labels[:half] if subsample == "base" else labels[half:])}
    return [
        [
            Datum(item.impath, new_label[item.label], item.domain, item.classname)
            for item in split
            if item.label in new_label
        ]
        for split in splits
    ]
