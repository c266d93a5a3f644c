"""ImageNet-Sketch: drawings of ImageNet's classes (Wang et al. 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet_variant import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    dataset_dir = "imagenet-sketch"
    images = "images"
