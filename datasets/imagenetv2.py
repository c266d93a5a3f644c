"""ImageNetV2: new photos of ImageNet's classes, collected by ImageNet's protocol (Recht et al. 2019)."""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError

from .class_folders import read_classnames
from .imagenet_variant import ImageNetVariant

NUM_CLASSES = 1000  # all of ImageNet's classes: the folder names are ImageNet's labels


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    images = "imagenetv2-matched-frequency-format-val"

    def classnames_by_folder(self, path: Path, folders: list[str], hint: str) -> dict[str, str]:
        """Return the class name of each folder, a line number, from 0, of ImageNet's 1,000-line file ``path``."""
        names = list(read_classnames(path, hint).values())
        if len(names) != NUM_CLASSES:
            raise UserError(f"{path} has {len(names)} names; it takes all {NUM_CLASSES:,} of ImageNet. {hint}")
        names_by_folder = {str(label): name for label, name in enumerate(names)}
        if unknown := ", ".join(folder for folder in folders if folder not in names_by_folder):
            raise UserError(f"class folders must be numbers from 0 to {NUM_CLASSES - 1}; there is {unknown}")
        return {folder: names_by_folder[folder] for folder in sorted(folders, key=int)}
