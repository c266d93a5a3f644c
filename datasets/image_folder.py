"""The data set ImageFolder: any folder of class folders. configs/datasets/image_folder.yaml is an example."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, derive_seed, is_utf8

from .class_folders import list_class_folders, list_images, match_classnames
from .links import LinkPolicy, check_link_target
from .protocol import FewShotDataset, draw_test_set
from .split_file import check_images_exist
from .table import read_image_table

SPLIT_FOLDERS = ("train", "test", "val")  # in the order of FewShotDataset's arguments


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    """Images ``DATASET.FOLDER/<class>/<image>``, split by TEST_PERCENT, or the same below ``train``, ``test``, ``val``.

    FOLDER is below DATASET.ROOT, and CLASSNAMES below FOLDER. With both ``test`` and ``val``, ``val``
    holds the validation images; either alone holds the test images. Class names are the folder names, with spaces for
    underscores, or come from the file DATASET.CLASSNAMES. Images lie directly in the class folders. With the table
    DATASET.CSV, images may lie anywhere below FOLDER, and its classes take the place of the class folders.

    Raises:
        UserError: a folder or class name is missing, a training class is empty, or a file is no image; the message
            names it.
    """

    orientation = "exif"  # photographs of phones, which lie on their side without it

    def __init__(self, cfg: CfgNode):
        splits = self._read_csv(cfg) if cfg.DATASET.CSV else self._list_folders(cfg)
        train, test, *val = splits if len(splits) > 1 else self._split_in_two(splits[0], cfg.DATASET.TEST_PERCENT)
        super().__init__(cfg, train, test, *val)

    def _list_folders(self, cfg: CfgNode) -> list[list[Datum]]:
        """Return the images of the folders train, test and, if it exists, val; or, without them, one list of all."""
        root = self.folder(cfg)
        hint = "DATASET.FOLDER, below DATASET.ROOT (--root), must hold class folders, or train/ and test/ with them"
        roots = find_split_roots(root)
        names = self._name_classes(cfg, list_class_folders(roots, hint))
        links = LinkPolicy(cfg, root)
        return [list_images(folder, names, links, allow_empty=folder != roots[0]) for folder in roots]

    def _read_csv(self, cfg: CfgNode) -> list[list[Datum]]:
        """Return the images of DATASET.CSV, split as by ``_list_folders``; classes are in the order of their names.

        A table of the images of class folders gives the same data set as the folders.
        """
        root = self.folder(cfg)
        rows = read_image_table(root / Path(cfg.DATASET.CSV).expanduser(), root, cfg.DATASET.IMAGE_COLUMN)
        names = self._name_classes(cfg, sorted({row.folder for row in rows}))
        labels = {folder: label for label, folder in enumerate(names)}
        splits: dict[str, list[Datum]] = {split: [] for split in ("", *SPLIT_FOLDERS)}
        for row in rows:
            splits[row.split].append(Datum(root / row.name, labels[row.folder], classname=names[row.folder]))
        check_images_exist(root, chain(*splits.values()), LinkPolicy(cfg, root))
        return [items for items in splits.values() if items]

    def _name_classes(self, cfg: CfgNode, folders: list[str]) -> dict[str, str]:
        """Return the class name of each folder, from DATASET.CLASSNAMES or the folder's name."""
        if file := cfg.DATASET.CLASSNAMES:
            return match_classnames(self.folder(cfg) / Path(file).expanduser(), folders, "DATASET.CLASSNAMES names it")
        return {folder: folder_to_classname(folder) for folder in folders}

    def _split_in_two(self, items: list[Datum], test_percent: float) -> tuple[list[Datum], list[Datum]]:
        """Return training images and, as test images, the fraction ``test_percent`` of each class.

        Both have at least 1 image of each class, but a class of 1 image has no test image. The draw depends on the
        names of class folder and file alone, so it is the same for all seeds and machines.
        """
        train, test = [], []
        for class_items in self.split_dataset_by_label(items).values():
            drawn = draw_test_set(class_items, test_percent, lambda item: derive_seed(*Path(item.impath).parts[-2:]))
            train += [item for item in class_items if item not in drawn]
            test += [item for item in class_items if item in drawn]
        return train, test

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        """Return the data set's folder, DATASET.FOLDER below DATASET.ROOT."""
        return Path(cfg.DATASET.ROOT).expanduser() / Path(cfg.DATASET.FOLDER).expanduser()


def folder_to_classname(folder: str) -> str:
    """Return a folder's name with spaces for underscores; raise ``UserError`` if it is empty or not in UTF-8."""
    name = " ".join(folder.replace("_", " ").splitlines())
    if not name.strip() or not is_utf8(name):
        raise UserError(f"the class folder {folder!r} cannot name a class; rename it, or name it in DATASET.CLASSNAMES")
    return name


def find_split_roots(root: Path) -> list[Path]:
    """Return the folders train, test and val of ``root`` that exist, if train and another do; else ``root`` alone.

    Raises ``UserError`` for a train/ of class folders without test/ and val/, and for a broken link.
    """
    for split in SPLIT_FOLDERS:
        check_link_target(root / split)
    existing = [root / split for split in SPLIT_FOLDERS if (root / split).is_dir()]
    train = root / "train"
    if existing == [train] and any(entry.is_dir() for entry in train.iterdir()):
        raise UserError(f"{root} has train/, but neither test/ nor val/. DATASET.FOLDER {train} splits its images")
    return existing if train in existing and len(existing) > 1 else [root]
