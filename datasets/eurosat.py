"""EuroSAT: land seen by the Sentinel-2 satellites (Helber et al. 2019)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class EuroSAT(SplitFile):
    dataset_dir = "eurosat"
    images = "2750"
    drive_id = "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"
