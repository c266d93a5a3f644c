"""Data sets whose split is a file, ``split_zhou_<Name>.json``, that CoOp's authors made, so that all compare on one.

    {"train": [["airplanes/image_0001.jpg", 0, "airplane"], …], "val": […], "test": […]}

An entry is a path below the folder of images, a label, and the name of the class.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import Datum
from dassl.utils import UserError, read_json

from .links import LinkPolicy, scan_folder
from .protocol import FewShotDataset
from .split_pickle import is_split_entry

SPLITS = ("train", "val", "test")


class SplitFile(FewShotDataset):
    """Images in ``<DATASET.ROOT>/<dataset_dir>/<images>``, listed by the split file in ``<dataset_dir>``.

    Raises:
        UserError: images or the split file are missing, or the file is not of the form above.
    """

    images = ""  # the folder that the paths in the split file start from
    drive_id = ""  # of the split file on Google Drive, as CoOp's DATASETS.md gives it

    def __init__(self, cfg: CfgNode):
        root = Path(cfg.DATASET.ROOT).expanduser()
        prepare = f"python tools/prepare_dataset.py {type(self).__name__} --root {root}"
        images, path = root / self.dataset_dir / self.images, self.split_path(root)
        if not images.is_dir():
            raise UserError(f"no folder {images}. {prepare} downloads it, or says where to get it")
        if not path.is_file():
            own = f"{prepare} --own-split draws one of your own, on which accuracies do not compare with published ones"
            raise UserError(f"no {path}. CoOp's split comes from {self.split_url()}; {own}")
        train, val, test = read_split(path, images)
        check_images_exist(images, [*train, *val, *test], LinkPolicy(cfg, self.folder(cfg)))
        super().__init__(cfg, train, test, val)

    @classmethod
    def split_path(cls, root: Path) -> Path:
        return root / cls.dataset_dir / f"split_zhou_{cls.__name__}.json"

    @classmethod
    def split_url(cls) -> str:
        return f"https://drive.google.com/file/d/{cls.drive_id}"


def read_split(path: Path, images: Path) -> list[list[Datum]]:
    """Return the train, val and test images of a split file, below the folder ``images``."""
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != set(SPLITS):
        raise UserError(f"{path} must hold {', '.join(SPLITS)}, as split files do")
    splits = []
    for split in SPLITS:
        if not isinstance(content[split], list) or not (content[split] or split == "val"):
            raise UserError(f"{path}: {split} must be a list of images")
        splits.append([])
        for number, entry in enumerate(content[split]):
            place = f"{path}, {split}[{number}]"
            if not is_split_entry(entry):
                raise UserError(f"{place} must be [path, label, class name]; got {entry!r}")
            name, label, classname = entry
            check_relative_path(name, place, images)
            splits[-1].append(Datum(os.path.join(images, name), label, classname=classname))
    return splits


def check_relative_path(name: str, place: str, images: Path) -> None:
    """Raise :class:`UserError` unless ``name``, found at ``place``, is a path below the folder ``images``."""
    if set(name) & {"\\", ":", "\0"} or {"", ".", ".."} & set(name.split("/")):  # the first two separate on Windows
        raise UserError(f"{place}: {name} is no path of a file below {images}")


def check_images_exist(images: Path, items: Iterable[Datum], links: LinkPolicy) -> None:
    """Raise :class:`UserError` where images are missing, or lead elsewhere by a link that ``links`` refuses."""
    names = defaultdict(set)
    for item in items:
        folder, name = os.path.split(item.impath)
        names[folder].add(name)
    links.check(filter(os.path.isdir, names), images)
    absent = []
    for folder in names:  # to list folders is quicker than to look at each file
        try:
            found = scan_folder(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name that a file can have
            found = {}
        absent += [os.path.join(folder, name) for name in sorted(names[folder] - found.keys())]
        links.check((os.path.join(folder, name) for name in names[folder] if found.get(name)), images)
    if absent:
        raise UserError(f"{len(absent):,} images that the split lists are not in {images}; the first is {absent[0]}")
