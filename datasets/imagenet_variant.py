"""Base class of ImageNet's variants: test sets of ImageNet's classes for methods that were trained on ImageNet."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase

from .class_folders import CLASSNAMES_FILE, list_class_folders, list_images, match_classnames
from .links import LinkPolicy
from .protocol import subsample_classes


class ImageNetVariant(DatasetBase):
    """Test images ``<DATASET.ROOT>/<dataset_dir>/<images>/<folder>/…``, with ``classnames.txt`` in ``dataset_dir``.

    The training images are the test images again, as loaders and class names need some. No few shots are drawn.

    Raises:
        UserError: a folder or class name is missing, a class is empty, or a file is no image; the message names it.
    """

    images = ""  # folder of the class folders, below dataset_dir

    def __init__(self, cfg: CfgNode):
        base = Path(cfg.DATASET.ROOT).expanduser() / self.dataset_dir
        prepare = f"tools/prepare_dataset.py {type(self).__name__} --root {base.parent}"
        folders = list_class_folders([base / self.images], f"{prepare} says where to get it")
        names = self.classnames_by_folder(
            base / CLASSNAMES_FILE, folders, f"Copy it from imagenet/; {prepare} writes it, too"
        )
        test = list_images(base / self.images, names, LinkPolicy(cfg, base))
        node = cfg.DATASET
        (test,) = subsample_classes(test, subsample=node.SUBSAMPLE_CLASSES, base_classes=node.BASE_CLASSES)
        super().__init__(train_x=test, test=test)

    def classnames_by_folder(self, path: Path, folders: list[str], hint: str) -> dict[str, str]:
        """Return the class name of each folder, from the file ``path``, in label order (see ``match_classnames``)."""
        return match_classnames(path, folders, hint)
