"""The examples in CONTRIBUTING.md work."""

import csv
import re
import shutil

import numpy as np
import pytest

import datasets  # noqa: F401  fills the registry
import trainers  # noqa: F401
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import load_checkpoint
from tests.common import REPOSITORY
from tools import export_classifier, results_table

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
    config.write_text(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1], encoding="utf-8")
    result = run(
        *("--root", tmp_path / "data", "--dataset-config-file", config, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3),
        trainer="ClassBias",
    )
    assert result.code == 0, result.error
    assert (result.record["trainer"], result.record["dataset"]) == ("ClassBias", "Pets")
    assert result.record["trainable_parameters"] == 10
    assert (result.folder / "bias" / "model.pth.tar-3").is_file()
    run(trainer="ZeroshotCLIP", out="zero-shot")
    assert results_table.main([str(tmp_path)]) == 0
    rows = {row: cells for row, *cells in csv.reader((tmp_path / "results.csv").open(encoding="utf-8"))}
    assert rows["ClassBias"] == ["-", f"{result.record['accuracy']:.2f}†", "10"]  # on Pets, with other class names
    assert (tmp_path / "parameters.png").is_file()


@pytest.fixture
def _no_onnx(monkeypatch):
    """Let the packages for ONNX be missing: the export of class weights alone takes no time."""
    monkeypatch.setattr("inference.export.find_spec", lambda name: None)


@pytest.mark.usefixtures("_no_onnx")
def test_the_class_weights_of_the_example_method_have_its_bias(examples, run):
    result = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 1.0, trainer="ClassBias")
    export_classifier.main([str(result.folder)])
    bias = load_checkpoint(result.folder / "bias/model.pth.tar-3")["state_dict"]["bias"]
    assert bias.abs().max() > 0.1
    assert np.allclose(np.load(result.folder / "classifier/class_weights.npz")["bias"], bias.numpy())


@pytest.mark.usefixtures("_no_onnx")
def test_a_method_that_inherits_its_parents_class_weights_is_not_exported(examples, run, capsys):
    class Plain(TRAINER_REGISTRY.get("ClassBias")):
        """Changes nothing, so it has its parent's class weights."""

    class Scaled(Plain):
        """Has other logits than its parent."""

        def model_inference(self, input):
            return 2 * super().model_inference(input)

    for trainer in (Plain, Scaled):
        TRAINER_REGISTRY.register(trainer)
    for name in ("Plain", "Scaled"):
        result = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, trainer=name, out=name)
        assert export_classifier.main([str(result.folder)]) == 2
        message = "Scaled replaces model_inference, but inherits linear_head"
        assert (message in capsys.readouterr().err) == (name == "Scaled")
        assert (result.folder / "classifier").exists() == (name == "Plain")
