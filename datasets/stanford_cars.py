"""StanfordCars: makes, models and years of cars (Krause et al. 2013)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class StanfordCars(SplitFile):
    dataset_dir = "stanford_cars"
    images = ""  # its paths begin with cars_train/ or cars_test/
    drive_id = "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"
