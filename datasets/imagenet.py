"""ImageNet, or any part of it: the class folders that are there are the classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .class_folders import ClassFolders


@DATASET_REGISTRY.register()
class ImageNet(ClassFolders):
    dataset_dir = "imagenet"
    download_hint = ". For ImageNette: python tools/prepare_imagenette.py"
