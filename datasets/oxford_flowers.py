"""OxfordFlowers: flowers of the United Kingdom (Nilsback and Zisserman 2008)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitFile):
    dataset_dir = "oxford_flowers"
    images = "jpg"
    drive_id = "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"
