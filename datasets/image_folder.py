"""The data set ImageFolder: any folder of class folders. configs/datasets/image_folder.yaml is an example."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, derive_seed, is_utf8

from .class_folders import list_class_folders, list_images, match_classnames
from .links import LinkPolicy, check_link_target
from .protocol import FewShotDataset, draw_test_set

SPLIT_FOLDERS = ("train", "test", "val")  # in the order of FewShotDataset's arguments


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    """Images ``DATASET.FOLDER/<class>/<image>``, split by TEST_PERCENT, or the same below ``train``, ``test``, ``val``.

    FOLDER is below DATASET.ROOT, and CLASSNAMES below FOLDER. With both ``test`` and ``val``, ``val``
    holds the validation images; either alone holds the test images. Class names are the folder names, with spaces for
    underscores, or come from the file DATASET.CLASSNAMES. Images lie directly in the class folders.

    Raises:
        UserError: a folder or class name is missing, a class is too small, or a file is no image; the message names it.
    """

    def __init__(self, cfg: CfgNode):
        node, root = cfg.DATASET, self.folder(cfg)
        hint = "DATASET.FOLDER, below DATASET.ROOT (--root), must hold class folders, or train/ and test/ with them"
        roots = find_split_roots(root)
        folders = list_class_folders(roots, hint)
        if node.CLASSNAMES:
            names = match_classnames(root / Path(node.CLASSNAMES).expanduser(), folders, "DATASET.CLASSNAMES names it")
        else:
            names = {folder: folder_to_classname(folder) for folder in folders}
        links = LinkPolicy(cfg, root)
        splits = [list_images(folder, names, links) for folder in roots]
        train, test, *val = splits if len(splits) > 1 else self._split_in_two(splits[0], node.TEST_PERCENT)
        super().__init__(cfg, train, test, *val)

    def _split_in_two(self, items: list[Datum], test_percent: float) -> tuple[list[Datum], list[Datum]]:
        """Return training images and, as test images, the fraction ``test_percent`` of each class.

        Both have at least 1 image of each class; raises :class:`UserError` for a class of 1 image. The draw depends on
        the names of class folder and file alone, so it is the same for all seeds and machines.
        """
        train, test = [], []
        for class_items in self.split_dataset_by_label(items).values():
            if len(class_items) == 1:
                path = class_items[0].impath
                raise UserError(f"{path} is the only image of its class; training and testing take one each")
            drawn = draw_test_set(class_items, test_percent, lambda item: derive_seed(*Path(item.impath).parts[-2:]))
            train += [item for item in class_items if item not in drawn]
            test += [item for item in class_items if item in drawn]
        return train, test

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        """Return the data set's folder, DATASET.FOLDER below DATASET.ROOT."""
        return Path(cfg.DATASET.ROOT).expanduser() / Path(cfg.DATASET.FOLDER).expanduser()


def folder_to_classname(folder: str) -> str:
    """Return a folder's name with spaces for underscores; raise :class:`UserError` if it is empty or not in UTF-8."""
    name = " ".join(folder.replace("_", " ").splitlines())
    if not name.strip() or not is_utf8(name):
        raise UserError(f"the class folder {folder!r} cannot name a class; rename it, or name it in DATASET.CLASSNAMES")
    return name


def find_split_roots(root: Path) -> list[Path]:
    """Return the folders train, test and val of ``root`` that exist, if train and another do; else ``root`` alone.

    Raises :class:`UserError` for a train/ of class folders without test/ and val/, and for a broken link.
    """
    for split in SPLIT_FOLDERS:
        check_link_target(root / split)
    existing = [root / split for split in SPLIT_FOLDERS if (root / split).is_dir()]
    train = root / "train"
    if existing == [train] and any(entry.is_dir() for entry in train.iterdir()):
        raise UserError(f"{root} has train/, but neither test/ nor val/. DATASET.FOLDER {train} splits its images")
    return existing if train in existing and len(existing) > 1 else [root]
