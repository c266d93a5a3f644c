"""Fixtures of several tests: images, a data set, and configs of trainers on it."""

import numpy as np
import pytest
from PIL import Image
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


@pytest.fixture
def images(tmp_path) -> list[Datum]:
    """Seven images of noise, of two classes and three domains."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return [Datum(str(path), number % 2, number % 3, "name") for number, path in enumerate(paths)]


@DATASET_REGISTRY.register()
class Shades(DatasetBase):
    """Dark and bright noise: 12 labelled and 20 unlabelled images, 4 for validation and 8 for testing."""

    def __init__(self, cfg):
        rng, items = np.random.default_rng(0), []
        for i in range(24):
            path = f"{cfg.DATASET.ROOT}/{i}.png"
            Image.fromarray(rng.integers(0, 100, (8, 8, 3), dtype=np.uint8) + np.uint8(150 * (i % 2))).save(path)
            items.append(Datum(impath=path, label=i % 2, domain=0, classname=("dark", "bright")[i % 2]))
        super().__init__(train_x=items[:12], train_u=items[:20], val=items[12:16], test=items[16:])


@pytest.fixture
def make_config(tmp_path):
    """A function that returns the config of a trainer: four epochs of three batches on Shades."""

    def make(trainer: str, out: str = "run", **values) -> CfgNode:
        cfg = get_cfg_default()
        cfg.TRAINER.NAME, cfg.DATASET.NAME = trainer, "Shades"
        cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path), str(tmp_path / out), 1
        cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = (8, 8), 0, 4
        cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR_SCHEDULER = "sgd", 0.05, 4, "cosine"
        for key, value in values.items():
            cfg.merge_from_list([key.replace("__", "."), value])
        return cfg

    return make
