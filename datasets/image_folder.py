"""Any folder of class folders, by keys of the config alone; configs/datasets/image_folder.yaml is an example."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import UserError, derive_seed, is_utf8

from .class_folders import list_class_folders, list_images, match_classnames
from .links import LinkPolicy, check_link_target
from .protocol import FewShotDataset, draw_test_set

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
        """Return training and test images, the latter a part ``test_percent`` of each class, and at least one.

        Which ones depends on the names of class folder and file alone, so it is the same for all seeds and machines.
        """
        train, test = [], []
        for alike in self.split_dataset_by_label(items).values():
            if len(alike) == 1:
                raise UserError(f"{alike[0].impath} is the only image of its class; training and testing take one each")
            drawn = draw_test_set(alike, test_percent, lambda item: derive_seed(*Path(item.impath).parts[-2:]))
            train += [item for item in alike if item not in drawn]
            test += [item for item in alike if item in drawn]
        return train, test

    @classmethod
    def folder(cls, cfg: CfgNode) -> Path:
        return Path(cfg.DATASET.ROOT).expanduser() / Path(cfg.DATASET.FOLDER).expanduser()


def folder_to_classname(folder: str) -> str:
    """Return what a class is called whose images lie in that folder.

    Raises:
        UserError: nothing is left of the name, or it is not in UTF-8, as the files of a run are.
    """
    name = " ".join(folder.replace("_", " ").splitlines())
    if not name.strip() or not is_utf8(name):
        raise UserError(f"the class folder {folder!r} cannot name a class; rename it, or name it in DATASET.CLASSNAMES")
    return name


def find_split_roots(root: Path) -> list[Path]:
    """Return the folders of training, test and perhaps validation images in ``root``, or that if it has the classes."""
    for split in SPLITS:
        check_link_target(root / split)
    there = [root / split for split in SPLITS if (root / split).is_dir()]
    train = root / "train"
    if there == [train] and any(entry.is_dir() for entry in train.iterdir()):
        raise UserError(f"{root} has train/, but neither test/ nor val/. DATASET.FOLDER {train} splits its images")
    return there if train in there and len(there) > 1 else [root]
