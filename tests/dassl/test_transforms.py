"""Transforms of images equal computations in NumPy and PIL, and no random transform is used for testing."""

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.data.transforms import build_transform

AUGMENTATIONS = ["random_crop", "random_resized_crop", "random_flip", "randaugment", "colorjitter", "randomgrayscale"]
AUGMENTATIONS += ["gaussian_blur", "cutout", "gaussian_noise"]
WHITE = Image.new("RGB", (20, 20), "white")


def config(*transforms: str, size: tuple[int, int] = (20, 20), **values):
    """Return a config with these transforms; ``values`` are keys of INPUT."""
    cfg = get_cfg_default()
    for key, value in {"SIZE": size, "TRANSFORMS": transforms, **values}.items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


def noise(height: int, width: int) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (height, width, channels) as a tensor (channels, height, width)."""
    return torch.from_numpy(np.float32(pixels.transpose(2, 0, 1)))


def normalized(picture: Image.Image, cfg) -> torch.Tensor:
    """Return an image as a tensor, normalized by PIXEL_MEAN and PIXEL_STD."""
    return tensor((np.asarray(picture) / 255 - cfg.INPUT.PIXEL_MEAN) / cfg.INPUT.PIXEL_STD)


@pytest.mark.parametrize("name", [*AUGMENTATIONS, "center_crop", "normalize", "instance_norm"])
def test_every_transform_returns_an_image_of_the_input_size(name):
    assert build_transform(config(name, size=(32, 32)), is_train=True)(noise(60, 80)).shape == (3, 32, 32)


def test_images_for_validation_and_testing_are_not_augmented(images):
    @DATASET_REGISTRY.register(force=True)
    class Listed(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=images[:2], val=images[2:4], test=images[4:])

    for item in images:
        Image.open(item.impath).resize((12, 12)).save(item.impath)
    cfg = config(*AUGMENTATIONS, "normalize", size=(12, 12))
    cfg.merge_from_list(["DATASET.NAME", "Listed", "DATALOADER.NUM_WORKERS", 0])
    manager = DataManager(cfg)
    for loader, expected in ((manager.val_loader, images[2:4]), (manager.test_loader, images[4:])):
        (batch,) = loader
        assert batch["impath"] == [item.impath for item in expected]
        assert batch["label"].tolist() == [item.label for item in expected]
        plain = torch.stack([normalized(Image.open(path), cfg) for path in batch["impath"]])
        torch.testing.assert_close(batch["img"], plain)
    (batch,) = manager.train_loader_x
    for image, path in zip(batch["img"], batch["impath"], strict=True):
        assert not torch.allclose(image, normalized(Image.open(path), cfg))


@pytest.mark.parametrize(("resize", "size", "left"), [("crop", (40, 20), 10), ("squash", (20, 20), 0)])
def test_a_wide_test_image_is_cropped_at_its_centre_or_squashed(resize, size, left):
    cfg, picture = config("normalize", RESIZE=resize, INTERPOLATION="bicubic"), noise(40, 80)
    expected = picture.resize(size, Image.Resampling.BICUBIC).crop((left, 0, left + 20, 20))
    torch.testing.assert_close(build_transform(cfg, is_train=False)(picture), normalized(expected, cfg))


def test_without_a_crop_training_images_are_squashed():
    cfg, picture = config("normalize", INTERPOLATION="nearest"), noise(40, 80)
    expected = picture.resize((20, 20), Image.Resampling.NEAREST)
    torch.testing.assert_close(build_transform(cfg, is_train=True)(picture), normalized(expected, cfg))


def test_random_resized_crops_have_the_scale_of_the_config():
    """Scale 1 takes a whole square image, scale 0.25 a quarter of its area; the pixels hold their coordinates."""
    picture = noise(20, 20)
    full = build_transform(config("random_resized_crop", RRCROP_SCALE=(1.0, 1.0)), is_train=True)
    torch.testing.assert_close(full(picture), tensor(np.asarray(picture) / 255))
    coordinates = np.zeros((200, 200, 3), dtype=np.uint8)
    coordinates[..., 0], coordinates[..., 1] = np.arange(200), np.arange(200)[:, None]
    quarter = config("random_resized_crop", size=(200, 200), RRCROP_SCALE=(0.25, 0.25), INTERPOLATION="nearest")
    crop = build_transform(quarter, is_train=True)(Image.fromarray(coordinates)) * 255
    width, height = (round((channel.max() - channel.min()).item()) + 1 for channel in crop[:2])
    assert width * height == pytest.approx(100 * 100, rel=0.02)


def test_a_cutout_is_a_black_square_around_a_random_centre():
    transform = build_transform(config("cutout", CUTOUT_LEN=6), is_train=True)
    torch.manual_seed(5)
    y, x = torch.randint(20, ()).item(), torch.randint(20, ()).item()
    expected = torch.ones(3, 20, 20)
    expected[:, max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 0
    torch.manual_seed(5)
    assert torch.equal(transform(WHITE), expected)


def test_a_cutout_is_black_before_the_normalisation():
    cfg = config("cutout", "normalize", CUTOUT_LEN=6)
    image = build_transform(cfg, is_train=True)(WHITE)
    black, white = (normalized(Image.new("RGB", (1, 1), color), cfg).flatten() for color in ("black", "white"))
    for channel, dark, bright in zip(image, black, white, strict=True):
        assert channel.unique().tolist() == pytest.approx([dark.item(), bright.item()])


def test_augmentations_have_the_values_of_the_config():
    jitter = {"COLORJITTER_B": 0.1, "COLORJITTER_C": 0.2, "COLORJITTER_S": 0.3, "COLORJITTER_H": 0.05}
    values = {"CROP_PADDING": 3, "RANDAUGMENT_N": 4, "RANDAUGMENT_M": 5, "RGS_P": 0.6, "GB_P": 0.7, "GB_K": 9}
    pipeline = build_transform(config(*AUGMENTATIONS, **jitter, **values), is_train=True)
    steps = {type(step).__name__: step for step in pipeline.transforms}
    assert steps["RandomCrop"].padding == 3
    assert (steps["RandAugment"].num_ops, steps["RandAugment"].magnitude) == (4, 5)
    color = steps["ColorJitter"]
    assert [color.brightness, color.contrast, color.saturation, color.hue] == [
        pytest.approx(span) for span in ((0.9, 1.1), (0.8, 1.2), (0.7, 1.3), (-0.05, 0.05))
    ]
    assert steps["RandomGrayscale"].p == 0.6
    assert (steps["RandomApply"].p, steps["RandomApply"].transforms[0].kernel_size) == (0.7, (9, 9))


def test_gaussian_noise_is_added_to_half_of_the_images():
    transform = build_transform(config("gaussian_noise", GN_MEAN=0.3, GN_STD=0.1), is_train=True)
    torch.manual_seed(0)
    images = torch.stack([transform(WHITE) for _ in range(200)])
    noisy = images[(images != 1).flatten(1).any(1)]
    assert 70 < len(noisy) < 130
    assert noisy.mean().item() == pytest.approx(1.3, abs=0.01)
    assert noisy.std().item() == pytest.approx(0.1, abs=0.01)


def test_instance_norm_normalizes_each_channel():
    picture = noise(20, 20)
    pixels = np.asarray(picture) / 255
    expected = (pixels - pixels.mean((0, 1))) / pixels.std((0, 1), ddof=1)
    torch.testing.assert_close(build_transform(config("instance_norm"), is_train=False)(picture), tensor(expected))
