"""Feature loaders give the same batches as image loaders, and no image is encoded twice."""

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
SHOT, TEST = 3, 6  # images of the small ImageNet: one training image of each class, and the test images


@pytest.fixture
def count_encoded(monkeypatch):
    """A function that returns the number of images encoded since its last call.

    A number in the list ``count_encoded.stop`` raises KeyboardInterrupt once, after that many images.
    """
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
        """Return the number of encoded images and reset it."""
        total = sum(blocks)
        blocks.clear()
        return total

    count.stop = stop
    return count


@pytest.fixture
def short(run, imagenet_root, tmp_path):
    """A function that runs one shot and two epochs on the small ImageNet with a feature cache for this test."""

    def call(*arguments, flags=(), **values):
        data = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
        return run(*data, *flags, *SHORT, "FEATURES.CACHE_DIR", tmp_path / "cache", *arguments, **values)

    return call


def config(*pairs):
    """Return a config with images of 8 x 8 pixels, batches of three, and these KEY VALUE pairs."""
    cfg = get_cfg_default()
    cfg.SEED, cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 1, (8, 8), 0, 3
    cfg.merge_from_list([*pairs])
    return cfg


def get_loader(cfg, images, is_train=True, **values):
    """Return a loader of images."""
    sampler = "RandomSampler" if is_train else "SequentialSampler"
    tfm = build_transform(cfg, is_train=is_train)
    return build_data_loader(cfg, sampler, images, 3, tfm=tfm, is_train=is_train, **values)


class PixelExtractor:
    """An extractor whose features are the pixels; ``blocks`` lists the number of requests of each call."""

    def __init__(self):
        self.blocks = []

    @property
    def request_count(self):
        return sum(self.blocks)

    def encode(self, images):
        return images.flatten(1)

    def __call__(self, requests, threads, name):
        self.blocks.append(len(requests))
        assert len(dict(requests)) == len(requests)
        return torch.stack([make().flatten() for _, make in requests])


def assert_same_batch(features: dict, images: dict) -> None:
    """Assert that a batch of features of ``PixelExtractor`` belongs to a batch of images."""
    assert features.keys() == images.keys()
    assert torch.equal(features["img"], images["img"].flatten(1))
    for key in ("label", "domain", "index"):
        assert torch.equal(features[key], images[key]), key
    assert features["impath"] == images["impath"]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("pairs", [(), RANDOM, (*RANDOM, "FEATURES.VIEWS", 2)], ids=["plain", "random", "views"])
def test_batches_are_those_of_the_loader_of_images(images, pairs, is_train):
    cfg = config(*pairs, "OPTIM.MAX_EPOCH", 3)
    extractor = PixelExtractor()
    loader = build_feature_loader(get_loader(cfg, images, is_train), extractor, "train")
    plain = get_loader(cfg, images, is_train)
    assert len(loader) == len(plain) == (2 if is_train else 3)
    for _ in range(4):  # one epoch more than was announced
        for one, other in zip(loader, plain, strict=True):
            assert_same_batch(one, other)
    if not is_train or not pairs:
        assert extractor.request_count == len(images)


def test_features_are_computed_in_blocks_across_epochs(images, monkeypatch):
    monkeypatch.setattr(features_module, "PREFETCH_DRAWS", 15)
    extractor = PixelExtractor()
    loader = build_feature_loader(get_loader(config(*RANDOM, "OPTIM.MAX_EPOCH", 7), images), extractor, "train")
    for _ in range(7):
        assert len(list(loader)) == 2  # batches of 3: 6 draws an epoch
    assert extractor.blocks == [15, 15, 12]
    assert extractor.request_count == 6 * 7  # no draw twice


def test_a_copied_loader_gives_the_same_batches_and_may_have_another_transform(images):
    """Third-party trainers copy the training loader."""
    loader = build_feature_loader(get_loader(config(*RANDOM), images), PixelExtractor(), "train")
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


def test_changed_labels_and_changed_images_are_served(images):
    """Methods with pseudo-labels change both."""
    loader = build_feature_loader(get_loader(config(*RANDOM), images), PixelExtractor(), "train")
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


def test_a_sampler_of_pytorch_gives_the_same_draws_as_without_features(images):
    data = get_loader(config(*RANDOM), images).dataset
    plain = DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    expected = [batch["index"].tolist() for batch in plain]
    plain.generator.manual_seed(0)
    loader = build_feature_loader(plain, PixelExtractor(), "train")
    assert [batch["index"].tolist() for batch in loader] == expected


class CustomWrapper(DatasetWrapper):
    def __getitem__(self, idx):
        return {**super().__getitem__(idx), "extra": idx * 2}


@pytest.mark.parametrize(
    ("wrapper", "pairs"),
    [(CustomWrapper, ()), (None, ("DATALOADER.K_TRANSFORMS", 2)), (None, ("DATALOADER.RETURN_IMG0", True))],
    ids=["wrapper", "views", "img0"],
)
def test_custom_wrappers_views_and_img0_are_encoded_without_the_store(images, wrapper, pairs):
    cfg = config(*RANDOM, *pairs)
    extractor = PixelExtractor()
    loader = build_feature_loader(get_loader(cfg, images, dataset_wrapper=wrapper), extractor, "train")
    plain = get_loader(cfg, images, dataset_wrapper=wrapper)
    for _ in range(2):
        for one, other in zip(loader, plain, strict=True):
            image_views = other.pop("img")
            views = image_views if isinstance(image_views, list) else [image_views]
            features = one.pop("img") if len(views) > 1 else [one.pop("img")]
            assert all(torch.equal(f, image.flatten(1)) for f, image in zip(features, views, strict=True))
            assert one.keys() == other.keys()
            for key, value in other.items():
                assert torch.equal(one[key], value) if isinstance(value, torch.Tensor) else one[key] == value, key
    assert extractor.request_count == 0


def test_a_random_test_transform_gives_other_features_each_time(images):
    cfg = config(*RANDOM)
    plain = build_data_loader(cfg, data_source=images, tfm=build_transform(cfg), is_train=False)
    loader = build_feature_loader(plain, PixelExtractor(), "test")
    assert not torch.equal(next(iter(loader))["img"], next(iter(loader))["img"])


def test_keys_differ_for_values_that_a_repr_rounds_to_the_same(images):
    def key(low):
        cfg = config(*RANDOM, "INPUT.RRCROP_SCALE", (low, 1.0))
        return build_feature_loader(get_loader(cfg, images), PixelExtractor(), "train").dataset._feature_key(0, 0, {})

    assert key(0.08) != key(0.08001)


def test_a_key_changes_with_the_content_of_a_file_of_the_same_size(images):
    def key():
        return build_feature_loader(get_loader(config(), images), PixelExtractor(), "train").dataset._feature_key(
            0, 0, {}
        )

    path = Path(images[0].impath)
    os.utime(path, (1, 1))
    first_key, content = key(), path.read_bytes()
    path.write_bytes(content[:-30] + b"x" + content[-29:])
    assert key() != first_key


def test_an_image_is_encoded_once_for_all_runs(short, count_encoded):
    assert short(*RANDOM, out="first").code == 0
    assert count_encoded() == 2 * SHOT + TEST
    assert short(*RANDOM, "TRAINER.COOP.N_CTX", 4, out="other prompts").code == 0
    assert short(flags=["--eval-only"], out="zero", trainer="ZeroshotCLIP").code == 0
    assert count_encoded() == 0
    short(*RANDOM, "INPUT.RRCROP_SCALE", "(0.5, 1.0)", out="other augmentation")
    assert count_encoded() == 2 * SHOT
    short(*RANDOM, "INPUT.PIXEL_STD", "[0.3, 0.3, 0.3]", out="other preprocessing")
    assert count_encoded() == 2 * SHOT + TEST


def test_views_are_encoded_once_and_the_log_says_so(short, count_encoded):
    two = short(*RANDOM, "OPTIM.MAX_EPOCH", 4, "FEATURES.VIEWS", 2)
    assert count_encoded() == 2 * SHOT + TEST
    assert "FEATURES.VIEWS 2: training images repeat their random draws after 2 epochs" in two.log


def test_an_interrupted_extraction_resumes_with_the_remaining_images(run, tmp_path, count_encoded):
    base = (*SHORT, "DATASET.SUBSAMPLE_CLASSES", "base", "FEATURES.CACHE_DIR", tmp_path / "cache")
    count_encoded.stop.append(300)
    assert run(*base).code == 130
    first_count = count_encoded()
    assert 300 <= first_count < 310
    resumed = run(*base)
    assert count_encoded() == 5 + resumed.record["total"] - first_count > 0


def test_features_of_pytorch_and_openvino_have_different_keys(short, count_encoded, monkeypatch):
    first = short(out="first")
    count_encoded()
    build_image_encoder.cache_clear()
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)
    result = short(out="torch")
    build_image_encoder.cache_clear()
    assert "Image features: float32, torch " in result.log
    assert ("openvino" in first.log) == (count_encoded() > 0)


def test_a_feature_cache_that_cannot_be_written_is_refused(short, tmp_path):
    (tmp_path / "file").write_text("")
    result = short("FEATURES.CACHE_DIR", tmp_path / "file" / "cache")
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert result.error.count("\n") == 1
    assert str(tmp_path / "file") in result.error
    assert "FEATURES.ENABLED False" in result.error
