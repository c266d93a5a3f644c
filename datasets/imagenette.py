"""ImageNette: ten easily distinguished ImageNet classes (fast.ai), in ImageNet's folder and layout."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNet


@DATASET_REGISTRY.register()
class ImageNette(ImageNet):
    pass
