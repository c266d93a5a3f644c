"""Any folder of class folders, by keys of the config alone; configs/datasets/image_folder.yaml is an example."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, derive_seed, is_utf8

from .class_folders import class_folders, common_folders, names_in, read_images
from .links import Links, check_not_dangling
from .protocol import FewShotDataset

SPLITS = ("train", "test", "val")


@DATASET_REGISTRY.register()
class ImageFolder(FewShotDataset):
    """``DATASET.FOLDER/<class>/<image>``, split by TEST_PERCENT, or the same below ``train`` and ``test`` or ``val``.

    With both ``test`` and ``val``, each is what it is called; one of them alone is the test set. Classes are named as
    their folders are, with spaces for underscores, or in the file DATASET.CLASSNAMES. Images lie in the class folder
    itself, not further below.

    Raises:
        UserError: a folder or name is missing, a class is too small, or a file is no image; the message names it.
    """

    def __init__(self, cfg: CfgNode):
        node, root = cfg.DATASET, self.folder(cfg)
        mend = "DATASET.FOLDER, below DATASET.ROOT (--root), must hold class folders, or train/ and test/ with them"
        splits = splits_in(root)
        folders = common_folders(root, splits, mend) if splits else class_folders(root, mend)
        if node.CLASSNAMES:
            names = names_in(root / Path(node.CLASSNAMES).expanduser(), folders, "DATASET.CLASSNAMES names it")
        else:
            names = {folder: class_name(folder) for folder in folders}
        links = Links(cfg, root)
        if splits:
            train, test, *val = (read_images(root / split, names, links) for split in splits)
        else:
            train, test, *val = split_in_two(read_images(root, names, links), node.TEST_PERCENT)
        super().__init__(cfg, train, test, *val)

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        return Path(cfg.DATASET.ROOT).expanduser() / Path(cfg.DATASET.FOLDER).expanduser()


def class_name(folder: str) -> str:
    """What a class is called whose images lie in that folder.

    Raises:
        UserError: nothing is left of the name, or it is not in UTF-8, as the files of a run are.
    """
    name = " ".join(folder.replace("_", " ").splitlines())
    if not name.strip() or not is_utf8(name):
        raise UserError(f"the class folder {folder!r} cannot name a class; rename it, or name it in DATASET.CLASSNAMES")
    return name


def splits_in(root: Path) -> list[str]:
    """The folders of training, test and, if there are any, validation images below ``root``; none, where it holds class
    folders."""
    for split in SPLITS:
        check_not_dangling(root / split)
    there = [split for split in SPLITS if (root / split).is_dir()]
    if there == ["train"] and any(entry.is_dir() for entry in (root / "train").iterdir()):
        raise UserError(
            f"{root} has train/, but neither test/ nor val/. DATASET.FOLDER {root / 'train'} splits its images"
        )
    return there if "train" in there and len(there) > 1 else []


def split_in_two(items: list[Datum], test_percent: float) -> tuple[list[Datum], list[Datum]]:
    """Training and test images, the latter a part ``test_percent`` of each class, and at least one.

    Which ones depends on the names of class folder and file alone, so it is the same for all seeds and machines.
    """
    if not 0 < test_percent < 1:
        raise UserError(f"DATASET.TEST_PERCENT is {test_percent}; it must be between 0 and 1")
    classes = defaultdict(list)
    for item in items:
        classes[item.label].append(item)
    train, test = [], []
    for alike in classes.values():
        if len(alike) == 1:
            raise UserError(f"{alike[0].impath} is the only image of its class; training and testing take one each")
        count = min(max(round(len(alike) * test_percent), 1), len(alike) - 1)
        drawn = set(sorted(alike, key=_by_name)[:count])
        train += [item for item in alike if item not in drawn]
        test += [item for item in alike if item in drawn]
    return train, test


def _by_name(item: Datum) -> int:
    return derive_seed(*Path(item.impath).parts[-2:])
