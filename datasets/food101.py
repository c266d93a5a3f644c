"""Food101: dishes (Bossard et al. 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class Food101(SplitFile):
    dataset_dir = "food-101"
    images = "images"
    drive_id = "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"
