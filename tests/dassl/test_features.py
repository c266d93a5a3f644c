"""Features in place of images: the same batches as those of images, and no image is encoded twice."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data import features as features_module
from dassl.data.data_manager import build_data_loader
from dassl.data.features import build_feature_loader
from dassl.data.transforms import build_transform
from tests.common import REPOSITORY
from vlm.images.encoder import OpenVINOEncoder, TorchEncoder, build_image_encoder

RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2)
SHOT, TEST = 3, 6  # images of the small ImageNet: one a class, and those for testing


@pytest.fixture
def encoded(monkeypatch):
    """A function that tells how many images have been encoded since it was last asked. Ctrl-C comes once when as many
    as ``encoded.stop`` tells have been."""
    blocks, stop = [], []

    def counting(original):
        def encode(self, images):
            for features, count in original(self, images):
                if stop and sum(blocks) >= stop[0]:
                    stop.clear()
                    raise KeyboardInterrupt
                blocks.append(count)
                yield features, count

        return encode

    for encoder in (OpenVINOEncoder, TorchEncoder):
        monkeypatch.setattr(encoder, "_encode", counting(encoder._encode))

    def count():
        total = sum(blocks)
        blocks.clear()
        return total

    count.stop = stop
    return count


@pytest.fixture
def short(run, imagenet_root, tmp_path):
    """A run of one shot and two epochs on the small ImageNet with the cache of this test."""

    def call(*arguments, flags=(), **values):
        data = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
        return run(*data, *flags, *SHORT, "FEATURES.CACHE_DIR", tmp_path / "cache", *arguments, **values)

    return call


def config(*pairs):
    cfg = get_cfg_default()
    cfg.SEED, cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 1, (8, 8), 0, 3
    cfg.merge_from_list([*pairs])
    return cfg


def get_loader(cfg, images, is_train=True, **values):
    sampler = "RandomSampler" if is_train else "SequentialSampler"
    tfm = build_transform(cfg, is_train=is_train)
    return build_data_loader(cfg, sampler, images, 3, tfm=tfm, is_train=is_train, **values)


class Pixels:
    """The features of an image are its pixels; it remembers how many images it was asked for at a time."""

    def __init__(self):
        self.blocks = []

    @property
    def asked(self):
        return sum(self.blocks)

    def encode(self, images):
        return images.flatten(1)

    def __call__(self, requests, threads, name):
        self.blocks.append(len(requests))
        assert len(dict(requests)) == len(requests)
        return torch.stack([make().flatten() for _, make in requests])


def assert_same_batch(features: dict, images: dict) -> None:
    assert features.keys() == images.keys()
    assert torch.equal(features["img"], images["img"].flatten(1))
    for key in ("label", "domain", "index"):
        assert torch.equal(features[key], images[key]), key
    assert features["impath"] == images["impath"]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("pairs", [(), RANDOM, (*RANDOM, "FEATURES.VIEWS", 2)], ids=["plain", "random", "views"])
def test_batches_are_those_of_the_loader_of_images(images, pairs, is_train):
    cfg = config(*pairs, "OPTIM.MAX_EPOCH", 3)
    source = Pixels()
    loader = build_feature_loader(get_loader(cfg, images, is_train), source, "train")
    plain = get_loader(cfg, images, is_train)
    assert len(loader) == len(plain) == (2 if is_train else 3)
    for _ in range(4):  # one epoch more than was announced
        for one, other in zip(loader, plain, strict=True):
            assert_same_batch(one, other)
    if not is_train or not pairs:
        assert source.asked == len(images)


def test_draws_are_computed_a_thousand_ahead_across_epochs(images, monkeypatch):
    monkeypatch.setattr(features_module, "PREFETCH_DRAWS", 15)
    source = Pixels()
    loader = build_feature_loader(get_loader(config(*RANDOM, "OPTIM.MAX_EPOCH", 7), images), source, "train")
    for _ in range(7):
        assert len(list(loader)) == 2  # batches of 3: 6 draws an epoch
    assert source.blocks == [15, 15, 12]
    assert source.asked == 6 * 7  # none twice


def test_a_copy_of_a_loader_gives_the_same_batches_and_with_another_transform_its_features(images):
    """As the field does with copies of the training loader."""
    loader = build_feature_loader(get_loader(config(*RANDOM), images), Pixels(), "train")
    next(iter(loader))
    other = copy.deepcopy(loader)
    assert other.dataset is not loader.dataset
    assert other.dataset.extractor is loader.dataset.extractor
    for one, two in zip(loader, other, strict=True):
        assert torch.equal(one["img"], two["img"])
        assert one["impath"] == two["impath"]
    other.dataset.transform = build_transform(config(), is_train=False)
    plain = get_loader(config(), images, is_train=False).dataset  # with that transform
    for batch in other:
        for index, feature in zip(batch["index"].tolist(), batch["img"], strict=True):
            assert torch.equal(feature, plain[index]["img"].flatten())
    assert not torch.equal(next(iter(loader))["img"], next(iter(other))["img"])


def test_other_labels_and_other_images_are_served(images):
    """As methods with pseudo-labels do."""
    loader = build_feature_loader(get_loader(config(*RANDOM), images), Pixels(), "train")
    next(iter(loader))
    for item in loader.dataset.data_source:
        item._label = 7
    assert {label for batch in loader for label in batch["label"].tolist()} == {7}
    loader.dataset.data_source = images[::-1]
    for batch in loader:
        assert batch["impath"] == [images[-1 - index].impath for index in batch["index"].tolist()]
        for index, feature in zip(batch["index"].tolist(), batch["img"], strict=True):
            expected = loader.dataset.dataset.load_item(index, loader.dataset.epoch)["img"]
            assert torch.equal(feature, expected.flatten())


def test_samplers_of_others_are_not_drawn_from_ahead(images):
    data = get_loader(config(*RANDOM), images).dataset
    plain = DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    expected = [batch["index"].tolist() for batch in plain]
    plain.generator.manual_seed(0)
    loader = build_feature_loader(plain, Pixels(), "train")
    assert [batch["index"].tolist() for batch in loader] == expected


class Own(DatasetWrapper):
    def __getitem__(self, idx):
        return {**super().__getitem__(idx), "more": idx * 2}


@pytest.mark.parametrize(
    ("wrapper", "pairs"),
    [(Own, ()), (None, ("DATALOADER.K_TRANSFORMS", 2)), (None, ("DATALOADER.RETURN_IMG0", True))],
    ids=["wrapper", "views", "img0"],
)
def test_what_is_not_our_own_way_of_making_images_goes_without_the_cache(images, wrapper, pairs):
    cfg = config(*RANDOM, *pairs)
    source = Pixels()
    loader = build_feature_loader(get_loader(cfg, images, dataset_wrapper=wrapper), source, "train")
    plain = get_loader(cfg, images, dataset_wrapper=wrapper)
    for _ in range(2):
        for one, other in zip(loader, plain, strict=True):
            images_of_other = other.pop("img")
            views = images_of_other if isinstance(images_of_other, list) else [images_of_other]
            features = one.pop("img") if len(views) > 1 else [one.pop("img")]
            assert all(torch.equal(f, image.flatten(1)) for f, image in zip(features, views, strict=True))
            assert one.keys() == other.keys()
            for key, value in other.items():
                assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value, key
    assert source.asked == 0


def test_a_test_transform_that_draws_is_not_taken_for_one_that_does_not(images):
    cfg = config(*RANDOM)
    plain = build_data_loader(cfg, data_source=images, tfm=build_transform(cfg), is_train=False)
    loader = build_feature_loader(plain, Pixels(), "test")
    assert not torch.equal(next(iter(loader))["img"], next(iter(loader))["img"])


def test_settings_that_a_repr_rounds_are_told_apart(images):
    def key(low):
        cfg = config(*RANDOM, "INPUT.RRCROP_SCALE", (low, 1.0))
        return build_feature_loader(get_loader(cfg, images), Pixels(), "train").dataset._feature_key(0, 0, {})

    assert key(0.08) != key(0.08001)


def test_another_picture_of_as_many_bytes_is_another(images):
    def key():
        return build_feature_loader(get_loader(config(), images), Pixels(), "train").dataset._feature_key(0, 0, {})

    path = Path(images[0].impath)
    os.utime(path, (1, 1))
    before, content = key(), path.read_bytes()
    path.write_bytes(content[:-30] + b"x" + content[-29:])
    assert key() != before


def test_what_was_encoded_before_is_not_encoded_again(short, encoded):
    assert short(*RANDOM, out="first").code == 0
    assert encoded() == 2 * SHOT + TEST
    assert short(*RANDOM, "TRAINER.COOP.N_CTX", 4, out="other prompts").code == 0
    assert short(flags=["--eval-only"], out="zero", trainer="ZeroshotCLIP").code == 0
    assert encoded() == 0
    short(*RANDOM, "INPUT.RRCROP_SCALE", "(0.5, 1.0)", out="other augmentation")
    assert encoded() == 2 * SHOT
    short(*RANDOM, "INPUT.PIXEL_STD", "[0.3, 0.3, 0.3]", out="other preprocessing")
    assert encoded() == 2 * SHOT + TEST


def test_views_are_encoded_once_and_the_log_says_so(short, encoded):
    two = short(*RANDOM, "OPTIM.MAX_EPOCH", 4, "FEATURES.VIEWS", 2)
    assert encoded() == 2 * SHOT + TEST
    assert "FEATURES.VIEWS 2: training images repeat their random draws after 2 epochs" in two.log


def test_an_extraction_that_is_stopped_goes_on_where_it_was(run, tmp_path, encoded):
    base = (*SHORT, "DATASET.SUBSAMPLE_CLASSES", "base", "FEATURES.CACHE_DIR", tmp_path / "cache")
    encoded.stop.append(300)
    assert run(*base).code == 130
    done = encoded()
    assert 300 <= done < 310
    resumed = run(*base)
    assert encoded() == 5 + resumed.record["total"] - done > 0


def test_features_of_pytorch_are_not_taken_for_openvinos(short, encoded, monkeypatch):
    first = short(out="first")
    encoded()
    build_image_encoder.cache_clear()
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)
    result = short(out="torch")
    build_image_encoder.cache_clear()
    assert "Image features: float32, torch " in result.log
    assert ("openvino" in first.log) == (encoded() > 0)


def test_a_cache_folder_that_cannot_be_written_is_one_message(short, tmp_path):
    (tmp_path / "file").write_text("")
    result = short("FEATURES.CACHE_DIR", tmp_path / "file" / "cache")
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert result.error.count("\n") == 1
    assert str(tmp_path / "file") in result.error
    assert "FEATURES.ENABLED False" in result.error
