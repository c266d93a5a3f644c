"""ImageNet-A: photos of 200 of ImageNet's classes that ResNet-50 gets wrong (Hendrycks et al. 2021)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet_variant import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    dataset_dir = "imagenet-adversarial"
    images = "imagenet-a"
