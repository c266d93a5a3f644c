"""Base class of the data sets that are split by a file of CoOp's authors, ``split_zhou_<Name>.json``.

    {"train": [["airplanes/image_0001.jpg", 0, "airplane"], …], "val": […], "test": […]}

An entry is a path below the folder of images, a label, and a class name.
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

SPLIT_FILE_KEYS = ("train", "val", "test")  # keys of a split file


class SplitFile(FewShotDataset):
    """The images ``<DATASET.ROOT>/<dataset_dir>/<images>/…`` that ``<dataset_dir>/split_zhou_<Name>.json`` lists.

    Raises:
        UserError: images or the split file are missing, or the file has another form.
    """

    images = ""  # folder of the images, below dataset_dir; the split file's paths are relative to it
    drive_id = ""  # the split file's id on Google Drive, from CoOp's DATASETS.md

    def __init__(self, cfg: CfgNode):
        root = Path(cfg.DATASET.ROOT).expanduser()
        prepare = f"python tools/prepare_dataset.py {type(self).__name__} --root {root}"
        images, path = root / self.dataset_dir / self.images, self.split_path(root)
        if not images.is_dir():
            raise UserError(f"no folder {images}. {prepare} downloads it, or says where to get it")
        if not path.is_file():
            hint = f"{prepare} --own-split draws another, on which accuracies do not compare with published ones"
            raise UserError(f"no {path}. CoOp's split comes from {self.split_url()}; {hint}")
        train, val, test = read_split(path, images)
        check_images_exist(images, [*train, *val, *test], LinkPolicy(cfg, self.folder(cfg)))
        super().__init__(cfg, train, test, val)

    @classmethod
    def split_path(cls, root: Path) -> Path:
        """Return the path of the split file in the data root ``root``."""
        return root / cls.dataset_dir / f"split_zhou_{cls.__name__}.json"

    @classmethod
    def split_url(cls) -> str:
        """Return the address of the split file on Google Drive."""
        return f"https://drive.google.com/file/d/{cls.drive_id}"


def read_split(path: Path, images: Path) -> list[list[Datum]]:
    """Return the lists of train, val and test images in the split file ``path``; its paths are relative to ``images``.

    Raises ``UserError`` if the file has another form. It does not look at the images.
    """
    content = read_json(path)
    if not isinstance(content, dict) or set(content) != set(SPLIT_FILE_KEYS):
        raise UserError(f"{path} must hold {', '.join(SPLIT_FILE_KEYS)}, as split files do")
    splits: list[list[Datum]] = []
    for split in SPLIT_FILE_KEYS:
        if not isinstance(content[split], list) or not (content[split] or split == "val"):
            raise UserError(f"{path}: {split} must be a list of images")
        splits.append([])
        for number, entry in enumerate(content[split]):
            where = f"{path}, {split}[{number}]"
            if not is_split_entry(entry):
                raise UserError(f"{where} must be [path, label, class name]; got {entry!r}")
            name, label, classname = entry
            check_relative_path(name, where, images)
            splits[-1].append(Datum(os.path.join(images, name), label, classname=classname))
    return splits


def check_relative_path(name: str, where: str, images: Path) -> None:
    """Raise ``UserError``, which names ``where``, unless ``name`` is a relative path (with /) below ``images``."""
    if set(name) & {"\\", ":", "\0"} or {"", ".", ".."} & set(name.split("/")):  # Windows separates by \ and :
        raise UserError(f"{where}: {name} is no path of a file below {images}")


def check_images_exist(images: Path, items: Iterable[Datum], links: LinkPolicy) -> None:
    """Raise ``UserError`` if the image of an item is missing, or if ``links`` refuses it or its folder.

    All items' ``impath`` begin with the folder ``images``. Links that stay in this folder are not refused.
    """
    names_by_folder: dict[str, set[str]] = defaultdict(set)
    for item in items:
        folder, name = os.path.split(item.impath)
        names_by_folder[folder].add(name)
    links.check(filter(os.path.isdir, names_by_folder), images)
    missing: list[str] = []
    for folder, names in names_by_folder.items():  # listing folders is faster than a check of each file
        try:
            entries = scan_folder(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no folder can have
            entries = {}
        missing += [os.path.join(folder, name) for name in sorted(names - entries.keys())]
        links.check((os.path.join(folder, name) for name in names if entries.get(name)), images)
    if missing:
        raise UserError(f"{len(missing):,} images that the split lists are not in {images}; the first is {missing[0]}")
