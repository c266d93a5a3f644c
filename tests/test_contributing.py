"""The examples in CONTRIBUTING.md work."""

import re
import shutil

import pytest

import datasets  # noqa: F401  fills the registry
import trainers  # noqa: F401
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from tests.common import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def examples():
    """Run the Python examples, and remove the classes that they register after the test."""
    before = {registry: dict(registry._obj_map) for registry in (TRAINER_REGISTRY, DATASET_REGISTRY)}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, {"__name__": "example"})
    yield
    for registry, objects in before.items():
        registry._obj_map.clear()
        registry._obj_map.update(objects)


def test_the_example_method_learns_on_the_example_data_set(examples, run, digits_root, tmp_path):
    shutil.copytree(digits_root / "digits", tmp_path / "data" / "pets")
    config = tmp_path / "pets.yaml"
    config.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])
    result = run(
        *("--root", tmp_path / "data", "--dataset-config-file", config, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3),
        trainer="ClassBias",
    )
    assert result.code == 0, result.error
    assert (result.record["trainer"], result.record["dataset"]) == ("ClassBias", "Pets")
    assert result.record["trainable_parameters"] == 10
    assert (result.folder / "bias" / "model.pth.tar-3").is_file()
