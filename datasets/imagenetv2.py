"""ImageNetV2: new photos of ImageNet's classes, chosen as the first ones were (Recht et al. 2019)."""

from __future__ import annotations

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError

from .class_folders import read_classnames
from .imagenet_variant import ImageNetVariant

NUM_CLASSES = 1000  # of ImageNet, whose labels are the folders' names


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    images = "imagenetv2-matched-frequency-format-val"

    def class_names(self, path: Path, folders: list[str], hint: str) -> dict[str, str]:
        names = list(read_classnames(path, hint).values())
        if len(names) != NUM_CLASSES:
            raise UserError(f"{path} has {len(names)} names; it takes all {NUM_CLASSES:,} of ImageNet. {hint}")
        known = {str(label): name for label, name in enumerate(names)}
        if strangers := [folder for folder in folders if folder not in known]:
            raise UserError(
                f"class folders must be numbers from 0 to {NUM_CLASSES - 1}; there is {', '.join(strangers)}"
            )
        return {folder: known[folder] for folder in sorted(folders, key=int)}
