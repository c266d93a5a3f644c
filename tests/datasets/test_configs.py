"""The config files in configs/datasets, one for each data set, with the name of its module; pets24 is of Features."""

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from tests.common import REPOSITORY
from tests.datasets.shapes import make_config

FILES = sorted(path.stem for path in (REPOSITORY / "configs/datasets").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_a_config_names_the_data_set_of_its_module_and_has_a_template(file, tmp_path):
    cfg = make_config(file, tmp_path)
    assert DATASET_REGISTRY.get(cfg.DATASET.NAME).__module__ == f"datasets.{'features' if file == 'pets24' else file}"
    assert cfg.DATASET.TEMPLATE.count("{}") == 1


def test_every_data_set_has_a_config():
    registered = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    expected = {cls.__name__ for cls in registered if cls.__module__.startswith("datasets.")}
    assert {make_config(file, REPOSITORY).DATASET.NAME for file in FILES} == expected
