"""SUN397: scenes, indoors and outdoors (Xiao et al. 2010)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class SUN397(SplitFile):
    dataset_dir = "sun397"
    images = "SUN397"
    drive_id = "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"
