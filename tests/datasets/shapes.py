"""Writes small data sets in the layouts of the real ones, and builds their configs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from yacs.config import CfgNode

import datasets  # noqa: F401  fills the registry
from dassl.config import get_cfg_default, merge_file
from tests.common import REPOSITORY

CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": 6, "val": 5, "test": 2}  # images of each class in each split

# Name of the config file -> registry name, folder of the images, folder of the split file, template.
SPLIT_FILES = {
    "caltech101": ("Caltech101", "caltech-101/101_ObjectCategories", "caltech-101", "a photo of a {}."),
    "dtd": ("DescribableTextures", "dtd/images", "dtd", "{} texture."),
    "eurosat": ("EuroSAT", "eurosat/2750", "eurosat", "a centered satellite photo of {}."),
    "food101": ("Food101", "food-101/images", "food-101", "a photo of {}, a type of food."),
    "oxford_flowers": ("OxfordFlowers", "oxford_flowers/jpg", "oxford_flowers", "a photo of a {}, a type of flower."),
    "oxford_pets": ("OxfordPets", "oxford_pets/images", "oxford_pets", "a photo of a {}, a type of pet."),
    "stanford_cars": ("StanfordCars", "stanford_cars", "stanford_cars", "a photo of a {}."),
    "sun397": ("SUN397", "sun397/SUN397", "sun397", "a photo of a {}."),
    "ucf101": ("UCF101", "ucf101/UCF-101-midframes", "ucf101", "a photo of a person doing {}."),
}


def config(root: Path, name: str, **values: object) -> CfgNode:
    """Return a config with seed 1 for the data set ``name`` in ``root``, with these ``values`` of DATASET."""
    cfg = get_cfg_default()
    cfg.SEED = 1
    cfg.DATASET.update(ROOT=str(root), NAME=name, **values)
    return cfg


def make_config(file: str, root: Path, **values: object) -> CfgNode:
    """Return a config with seed 1, the file ``configs/datasets/<file>.yaml`` and these ``values`` of DATASET."""
    cfg = config(root, "", **values)
    merge_file(cfg, REPOSITORY / f"configs/datasets/{file}.yaml")
    return cfg


def write_images(folder: Path, names: Iterable[str]) -> None:
    """Write images of 8x8 pixels to the paths ``names`` below ``folder``."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(path)


def write_captions(root: Path, count: int, captions: Callable[[int], list[str] | str]) -> None:
    """Write ``count`` training and as many test images of noise, and captions.json with their ``captions(number)``."""
    rng, rows = np.random.default_rng(0), []
    root.mkdir(parents=True, exist_ok=True)
    for number in range(2 * count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{number:03}.png")
        split = "train" if number < count else "test"
        rows.append({"image": f"{number:03}.png", "caption": captions(number), "split": split})
    (root / "captions.json").write_text(json.dumps(rows), encoding="utf-8")


def write_split_file(file: str, root: Path) -> Path:
    """Write the images and the split file of the data set with the config ``file``; return the split file's path."""
    name, images, folder, _ = SPLIT_FILES[file]
    split = {
        key: [
            # Not in the order of labels, as in the real split files.
            [f"{classname}/{key}_{i}.jpg", label, classname]
            for i in range(count)
            for label, classname in reversed(list(enumerate(CLASSES)))
        ]
        for key, count in COUNTS.items()
    }
    write_images(root / images, (entry[0] for entries in split.values() for entry in entries))
    path = root / folder / f"split_zhou_{name}.json"
    path.write_text(json.dumps(split))
    return path
