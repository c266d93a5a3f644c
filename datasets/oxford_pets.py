"""OxfordPets: breeds of cats and dogs (Parkhi et al. 2012)."""

from dassl.data.datasets import DATASET_REGISTRY

from .split_file import SplitFile


@DATASET_REGISTRY.register()
class OxfordPets(SplitFile):
    dataset_dir = "oxford_pets"
    images = "images"
    drive_id = "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"
