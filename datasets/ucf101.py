"""UCF101: what people do, the middle frames of videos (Soomro et al. 2012)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class UCF101(SplitFile):
    dataset_dir = "ucf101"
    images = "UCF-101-midframes"
    drive_id = "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"
