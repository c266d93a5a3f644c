"""Transforms from PIL images to tensors: CLIP's preprocessing for tests, and the augmentations of INPUT.TRANSFORMS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from dassl.utils import UserError, check_availability

# The values that Dassl's INPUT.INTERPOLATION takes.
INTERPOLATION_MODES = {name: InterpolationMode(name) for name in ("bilinear", "bicubic", "nearest")}


@dataclass
class Cutout:
    """A transform that blackens ``n`` random squares of ``length`` pixels in an image (channels, height, width)."""

    n: int
    length: int

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return a copy of the image (channels, height, width) with black squares, cut off at its edges."""
        height, width = image.shape[-2:]
        image = image.clone()
        for _ in range(self.n):
            y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
            half = self.length // 2
            image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


@dataclass
class GaussianNoise:
    """A transform that adds Gaussian noise to an image with probability ``p``."""

    mean: float
    std: float
    p: float = 0.5

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image plus noise with probability ``p``, and otherwise the image itself."""
        if torch.rand(()) > self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


@dataclass
class InstanceNormalization:
    """A transform that gives each channel of an image mean 0 and standard deviation 1."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image (channels, height, width) with mean 0 and standard deviation 1 in each channel."""
        mean, std = image.mean((-2, -1), keepdim=True), image.std((-2, -1), keepdim=True)
        return (image - mean) / (std + 1e-8)


Step = tuple[str, Callable]  # the description for the log, the transform
# The transforms without random draws; features of images under any other transform are computed for each epoch.
DETERMINISTIC = (T.Resize, T.CenterCrop, T.ToTensor, T.Normalize, InstanceNormalization)


class Pipeline(T.Compose):
    """The transforms that a config names, in order. Feature keys contain its ``repr``, which shows their values."""

    @property
    def is_random(self) -> bool:
        """Return whether two transforms of the same image can differ."""
        return not all(isinstance(transform, DETERMINISTIC) for transform in self.transforms)


def _image_transforms(c: CfgNode) -> dict[str, Step]:
    """Return (description, transform) of all transforms of PIL images by name, in order, for the INPUT node ``c``."""
    size, mode = tuple(c.SIZE), get_interpolation(c)
    jitter = {"brightness": c.COLORJITTER_B, "contrast": c.COLORJITTER_C, "saturation": c.COLORJITTER_S}
    jitter["hue"] = c.COLORJITTER_H
    blur = T.RandomApply([T.GaussianBlur(c.GB_K)], p=c.GB_P)
    return {
        "random_crop": (f"random crop (padding={c.CROP_PADDING})", T.RandomCrop(size, padding=c.CROP_PADDING)),
        "random_resized_crop": (
            f"random resized crop (size={size}, scale={tuple(c.RRCROP_SCALE)})",
            T.RandomResizedCrop(size, scale=c.RRCROP_SCALE, interpolation=mode),
        ),
        "center_crop": (f"center crop (size={size})", T.CenterCrop(size)),
        "random_flip": ("random flip", T.RandomHorizontalFlip()),
        "randaugment": (
            f"randaugment (n={c.RANDAUGMENT_N}, m={c.RANDAUGMENT_M})",
            T.RandAugment(c.RANDAUGMENT_N, c.RANDAUGMENT_M),
        ),
        "colorjitter": (f"color jitter ({jitter})", T.ColorJitter(**jitter)),
        "randomgrayscale": (f"random gray scale (p={c.RGS_P})", T.RandomGrayscale(c.RGS_P)),
        "gaussian_blur": (f"gaussian blur (kernel={c.GB_K}, p={c.GB_P})", blur),
    }


def _tensor_transforms(c: CfgNode) -> dict[str, Step]:
    """Return the tensor transforms as ``_image_transforms``; they take (channels, height, width) in [0, 1]."""
    return {
        "cutout": (f"cutout (n_holes={c.CUTOUT_N}, length={c.CUTOUT_LEN})", Cutout(c.CUTOUT_N, c.CUTOUT_LEN)),
        "normalize": (f"normalization (mean={list(c.PIXEL_MEAN)}, std={list(c.PIXEL_STD)})", _build_normalize(c)),
        "gaussian_noise": (f"gaussian noise (mean={c.GN_MEAN}, std={c.GN_STD})", GaussianNoise(c.GN_MEAN, c.GN_STD)),
        "instance_norm": ("instance normalization", InstanceNormalization()),
    }


def _build_normalize(c: CfgNode) -> T.Normalize:
    """Return the normalization of the INPUT node ``c``; UserError unless PIXEL_MEAN, PIXEL_STD (> 0) have 3 numbers."""
    mean, std = list(c.PIXEL_MEAN), list(c.PIXEL_STD)
    are_numbers = len(mean) == len(std) == 3 and all(isinstance(value, (int, float)) for value in mean + std)
    if not are_numbers or min(std) <= 0:
        raise UserError(f"INPUT.PIXEL_MEAN {mean} and PIXEL_STD {std} must be three numbers each, PIXEL_STD above 0")
    return T.Normalize(mean=mean, std=std)


def get_interpolation(c: CfgNode) -> InterpolationMode:
    """Return the mode that INPUT.INTERPOLATION names; raise ``UserError`` for an unknown name."""
    check_availability(c.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    return INTERPOLATION_MODES[c.INTERPOLATION]


def build_transform(cfg: CfgNode, is_train: bool = True, choices: tuple[str, ...] | None = None) -> Pipeline | None:
    """Return the transform of training or of test images and print its steps; return None with INPUT.NO_TRANSFORM.

    Steps have a fixed order. Training images are squashed to SIZE if no random crop is named. Test images get the
    resize that RESIZE names and, of the named transforms, only normalize and instance_norm.

    Args:
        choices: names of transforms in place of INPUT.TRANSFORMS.

    Raises:
        UserError: a transform or the interpolation is unknown, or a value does not suit its transform.
    """
    c = cfg.INPUT
    if c.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = tuple(c.TRANSFORMS if choices is None else choices)
    if len(c.SIZE) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in c.SIZE):
        raise UserError(f"INPUT.SIZE is {tuple(c.SIZE)}; it must be two numbers of pixels, such as (224, 224)")
    try:
        image_transforms, tensor_transforms = _image_transforms(c), _tensor_transforms(c)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"the INPUT keys do not suit the transforms: {error}") from error
    check_availability(choices, [*image_transforms, *tensor_transforms], "transform (INPUT.TRANSFORMS)")
    if is_train:
        steps = [step for name, step in image_transforms.items() if name in choices]
        if not {"random_crop", "random_resized_crop"} & set(choices):
            steps.insert(0, _squash_step(c))
        allowed = tensor_transforms
    else:
        steps = _test_resize_steps(c)
        allowed = {name: tensor_transforms[name] for name in ("normalize", "instance_norm")}
    steps.append(("to torch tensor of range [0, 1]", T.ToTensor()))
    steps += [step for name, step in allowed.items() if name in choices]
    print(f"Building transform_{'train' if is_train else 'test'}")
    for description, _ in steps:
        print(f"+ {description}")
    return Pipeline([transform for _, transform in steps])


def _test_resize_steps(c: CfgNode) -> list[Step]:
    """Return the steps that bring a test image to SIZE: for RESIZE "crop", as CLIP does; for "squash", uncropped."""
    check_availability(c.RESIZE, ("crop", "squash"), "INPUT.RESIZE")
    if c.RESIZE == "squash":
        return [_squash_step(c)]
    (height, width), edge = c.SIZE, max(c.SIZE)
    resize = (f"resize the smaller edge to {edge}", T.Resize(edge, interpolation=get_interpolation(c)))
    return [resize, (f"{height}x{width} center crop", T.CenterCrop((height, width)))]


def _squash_step(c: CfgNode) -> Step:
    """Return the step that resizes a whole image to SIZE, whatever its aspect ratio."""
    return f"resize to {tuple(c.SIZE)}", T.Resize(tuple(c.SIZE), interpolation=get_interpolation(c))


def build_plain_transform(cfg: CfgNode) -> Callable:
    """Return the transform of ``img0`` in a batch: the whole image at SIZE, normalized if TRANSFORMS has normalize."""
    c = cfg.INPUT
    steps = [T.Resize(tuple(c.SIZE), interpolation=get_interpolation(c)), T.ToTensor()]
    if "normalize" in c.TRANSFORMS:
        steps.append(_build_normalize(c))
    return T.Compose(steps)
