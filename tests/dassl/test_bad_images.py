"""Loaders leave out pictures that cannot be read, and are else as they were."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.bad_images import SHOWN, BadImages
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.feature_loader import FeatureLoader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerXU, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import BadImage, UserError, read_image
from tests.common import damage
from vlm.feature_store import FeatureStore
from vlm.features import ImageFeatures

RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")


def config(*pairs):
    cfg = get_cfg_default()
    settings = ("INPUT.SIZE", (8, 8), "SEED", 1, "DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 3)
    cfg.merge_from_list([*settings, *pairs])
    return cfg


class Pixels:
    """The features of an image are its pixels."""

    def encode(self, images):
        return images.flatten(1)

    def __call__(self, requests, threads, name):
        made = [make() for _, make in requests]
        return [image.flatten() for image in made if image is not None]


class Encoder:
    """Encodes as :class:`Pixels` does, in blocks of three."""

    def encode(self, images):
        images, block = iter(images), []
        for image in images:
            block.append(image.flatten())
            if len(block) == 3:
                yield from block
                block = []
        yield from block


def loader_of(cfg, images, is_train=True, source=None, size=2, told=None, **values):
    sampler = "RandomSampler" if is_train else "SequentialSampler"
    tfm = build_transform(cfg, is_train=is_train)
    loader = build_data_loader(cfg, sampler, images, size, tfm=tfm, is_train=is_train, **values)
    if source:
        loader = FeatureLoader(loader, source, "train")
    if told is not None:
        loader.on_bad_image = told.append
    return loader


def rows(loader, epochs: int) -> list[list[tuple]]:
    """Of each epoch the batches, in which each image is a tuple of its index and the rest."""
    found = []
    for _ in range(epochs):
        found.append([])
        for batch in loader:
            values = (batch["index"].tolist(), batch["label"].tolist(), batch["domain"].tolist(), batch["impath"])
            pixels = (tuple(image.flatten().tolist()) for image in batch["img"])
            found[-1].append(list(zip(*values, pixels, strict=True)))
    return found


SOURCES = {"images": None, "features": Pixels(), "threads": ImageFeatures(Encoder())}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_train", [True, False], ids=["train", "test"])
@pytest.mark.parametrize("pairs", [(), RANDOM], ids=["plain", "random"])
def test_batches_go_without_what_cannot_be_read_and_are_else_the_same(images, pairs, is_train, workers, source):
    cfg = config(*pairs, "DATALOADER.NUM_WORKERS", workers)
    whole = rows(loader_of(cfg, images, is_train), 4)
    bad = {2, 3, 5}
    damage(images[2].impath, images[3].impath)  # of the same content; with two in a batch, a whole one when testing
    Path(images[5].impath).unlink()
    expected = [[[row for row in batch if row[0] not in bad] for batch in epoch] for epoch in whole]
    told = []
    assert rows(loader_of(cfg, images, is_train, source, told=told), 4) == [
        [batch for batch in epoch if batch] for epoch in expected
    ]
    assert {error.path for error in told} == {images[number].impath for number in bad}
    reasons = {error.path: error.reason for error in told}
    assert reasons[images[5].impath] == "No such file or directory"
    assert reasons[images[2].impath] == reasons[images[3].impath] != ""


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("workers", [0, 1])
def test_where_nobody_listens_the_first_is_an_error(images, workers, source):
    damage(images[4].impath)
    loader = loader_of(config("DATALOADER.NUM_WORKERS", workers), images, source=source)
    with pytest.raises(UserError, match=re.escape(f"cannot read {images[4].impath} as an image")):
        rows(loader, 1)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_split_without_a_picture_that_can_be_read_is_an_error(images, source):
    damage(*(item.impath for item in images))
    told = []
    with pytest.raises(UserError, match=r"not one image .* can be read; for one, cannot read .*\.png as an image"):
        rows(loader_of(config(), images, False, source, told=told), 1)
    assert len({error.path for error in told}) == 7


def test_other_forms_of_items_go_without_them_too(images):
    damage(images[0].impath)
    cfg = config(*RANDOM, "DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True)
    for source in (None, Pixels()):
        told = []
        batches = list(loader_of(cfg, images, source=source, size=7, told=told))
        assert [len(view) for batch in batches for view in (*batch["img"], batch["img0"])] == [6, 6, 6]
        assert [error.path for error in told] == [images[0].impath]


def test_no_feature_is_kept_under_the_key_of_another(tmp_path):
    store = FeatureStore(tmp_path, {}, 1)
    keys = [bytes([number]) * 16 for number in range(9)]
    bad = {0, 3, 4, 8}
    makers = [lambda n=n: None if n in bad else torch.full((3, 2, 2), float(n)) for n in range(9)]
    features = ImageFeatures(Encoder(), store)(list(zip(keys, makers, strict=True)), threads=3)
    assert features[:, 0].tolist() == [1, 2, 5, 6, 7]
    kept = FeatureStore(tmp_path, {}, 1).get(keys)
    assert {key[0]: value[0].item() for key, value in kept.items()} == {n: n for n in range(9) if n not in bad}


class Own(DatasetWrapper):
    """Reads images by itself, as wrappers of the field do."""

    def __getitem__(self, idx):
        item = self.data_source[idx]
        return {"img": self._transform_image(self.transform, read_image(item.impath)), "index": idx}


class Foreign(Dataset):
    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.data_source, self.transform = data_source, transform

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        return {"img": self.transform(read_image(self.data_source[idx].impath)), "index": idx}


@pytest.mark.parametrize("workers", [0, 1])
def test_wrappers_of_others_keep_working(images, workers):
    damage(images[4].impath)
    cfg = config("DATALOADER.NUM_WORKERS", workers)
    told = []
    own = loader_of(cfg, images, False, told=told, dataset_wrapper=Own)
    assert [batch["index"].tolist() for batch in own] == [[0, 1], [2, 3], [5], [6]]
    assert len(told) == 1
    # What does not go through our wrapper, or not through our loader, raises the error at the first.
    foreign = loader_of(cfg, images, False, told=told, dataset_wrapper=Foreign)
    beside = DataLoader(own.dataset, batch_size=2, num_workers=workers)
    for loader in (foreign, beside, DataLoader(own.dataset, batch_size=5, num_workers=workers)):
        with pytest.raises(UserError, match=re.escape(f"cannot read {images[4].impath} as an image")) as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)


def test_the_messages_name_twenty_and_a_file_the_rest(tmp_path, images, capsys):
    cfg = config("OUTPUT_DIR", str(tmp_path))
    bad = BadImages(cfg)
    bad.expect({"test": loader_of(cfg, images, False), "val": None})
    for number in range(SHOWN + 5):
        for _ in range(3):  # as in three epochs
            bad.add("test", BadImage.of(f"{number:02}.png", "cut"))
    assert capsys.readouterr().out.count("Note: cannot read 07.png as an image: cut; it is left out\n") == 1
    with pytest.raises(UserError, match=r"^25 of 7 test images could not be read") as caught:
        bad.refuse({})
    listed = [f"test: cannot read {number:02}.png as an image: cut" for number in range(SHOWN + 5)]
    assert (tmp_path / "bad_images.txt").read_text().splitlines() == listed
    last = f"and 5 more; {tmp_path / 'bad_images.txt'} names them all"
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [*listed[:SHOWN], last]
    BadImages(cfg).refuse({})  # nothing to say


# ---- labelled and unlabelled ones ----


@DATASET_REGISTRY.register()
class HalfLabelled(DatasetBase):
    def __init__(self, cfg):
        paths = sorted(Path(cfg.DATASET.ROOT).glob("*.png"))
        items = [Datum(str(path), label % 2, classname="ab"[label % 2]) for label, path in enumerate(paths)]
        super().__init__(train_x=items[:3], train_u=items[3:], test=items)


@TRAINER_REGISTRY.register()
class Counts(TrainerXU):
    def build_model(self):
        self.model, self.seen = nn.Linear(3 * 8 * 8, 2), []
        optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("model", self.model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def model_inference(self, input):
        return self.model(input.flatten(1))

    def forward_backward(self, batch_x, batch_u):
        self.seen.append((batch_x["impath"][0], batch_u["impath"][0], self.batch_idx + 1 == self.num_batches))
        return {}


@pytest.mark.parametrize("split", ["train_x", "train_u"])
def test_labelled_and_unlabelled_pictures(images, tmp_path, split):
    cfg = config("DATASET.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "run"), "DATASET.NAME", "HalfLabelled")
    cfg.merge_from_list(["TRAINER.NAME", "Counts", "DATALOADER.TRAIN_X.BATCH_SIZE", 1, "TRAIN.COUNT_ITER", "train_u"])
    number = {"train_x": 1, "train_u": 4}[split]
    damage(images[number].impath)
    trainer = build_trainer(cfg)
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert f"1 of {3 if split == 'train_x' else 4} {split} images and 1 of 7 test images" in str(caught.value)
    assert images[number].impath not in {path for step in trainer.seen for path in step[:2]}
    steps = len(trainer.seen) // 3
    assert steps in (3, 4)
    assert [is_last for *_, is_last in trainer.seen] == ([False] * (steps - 1) + [True]) * 3
