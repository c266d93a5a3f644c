"""ImageNet, or any subset of its classes: each class folder that exists is a class."""

from dassl.data.datasets import DATASET_REGISTRY

from .class_folders import ClassFolders


@DATASET_REGISTRY.register()
class ImageNet(ClassFolders):
    dataset_dir = "imagenet"
    download_hint = ". For ImageNette: python tools/prepare_imagenette.py"
