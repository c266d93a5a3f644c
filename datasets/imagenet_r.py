"""ImageNet-R: art, toys and other renditions of 200 of ImageNet's classes (Hendrycks et al. 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet_variant import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    dataset_dir = "imagenet-rendition"
    images = "imagenet-r"
