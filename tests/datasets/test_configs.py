"""configs/datasets: a file a data set, under the name that its module has."""

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from tests.common import REPOSITORY
from tests.datasets.shapes import config_of

FILES = sorted(path.stem for path in (REPOSITORY / "configs/datasets").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_a_config_names_a_data_set_and_describes_it(file, tmp_path):
    cfg = config_of(file, tmp_path)
    assert DATASET_REGISTRY.get(cfg.DATASET.NAME).__module__ == f"datasets.{file}"
    assert cfg.DATASET.TEMPLATE.count("{}") == 1


def test_every_data_set_has_a_config():
    known = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    ours = {cls.__name__ for cls in known if cls.__module__.startswith("datasets.")}
    assert {config_of(file, REPOSITORY).DATASET.NAME for file in FILES} == ours
