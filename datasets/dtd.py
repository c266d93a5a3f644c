"""DescribableTextures: textures as people describe them (Cimpoi et al. 2014)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class DescribableTextures(SplitFile):
    dataset_dir = "dtd"
    images = "images"
    drive_id = "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"
