"""ImageNette: ten ImageNet classes that are easy to tell apart (fast.ai), in ImageNet's layout and place."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNet


@DATASET_REGISTRY.register()
class ImageNette(ImageNet):
    pass
