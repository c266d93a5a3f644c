"""Caltech101: things and animals (Fei-Fei et al. 2004)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class Caltech101(SplitFile):
    dataset_dir = "caltech-101"
    images = "101_ObjectCategories"
    drive_id = "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"
