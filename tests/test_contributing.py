"""The examples in CONTRIBUTING.md work."""

import csv
import re
import shutil

import numpy as np
import pytest
import torch

import datasets  # noqa: F401  fills the registry
import trainers  # noqa: F401
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import load_checkpoint
from inference.trained_run import load_classnames, load_trainer
from studies.tables import pareto, study
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


@pytest.fixture
def configs(tmp_path):
    """The paths of the examples of configs: "method" and "pets"."""
    paths = {}
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)):
        name = "pets" if "DATASET:" in block else "method"
        paths[name] = tmp_path / f"{number}.yaml"
        paths[name].write_text(block, encoding="utf-8")
    return paths


def test_the_example_method_is_a_file_of_at_most_forty_lines():
    block = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "class ClassScale" in block)
    assert block.count("\n") <= 40


def test_the_example_method_learns_on_the_example_data_set(examples, configs, run, digits_root, tmp_path):
    shutil.copytree(digits_root / "digits", tmp_path / "data" / "pets")
    options = ("--dataset-config-file", configs["pets"], "--config-file", configs["method"])
    result = run(
        "--root", tmp_path / "data", *options, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3, trainer="ClassScale"
    )
    assert result.code == 0, result.error
    assert (result.record["trainer"], result.record["dataset"]) == ("ClassScale", "Pets")
    assert result.record["trainable_parameters"] == 20
    assert (result.folder / "class_scale" / "model.pth.tar-3").is_file()


@pytest.fixture
def _no_onnx(monkeypatch):
    """Let the packages for ONNX be missing: the export of class weights alone takes no time."""
    monkeypatch.setattr("inference.export.find_spec", lambda name: None)


@pytest.mark.usefixtures("_no_onnx")
def test_runs_of_the_example_method_are_in_table_plot_and_export(examples, configs, run, tmp_path):
    """On digits, with the method's file and config alone."""
    zero_shot = run("--eval-only", trainer="ZeroshotCLIP", out="study/zero-shot")
    result = run("--config-file", configs["method"], "DATASET.NUM_SHOTS", 16, trainer="ClassScale", out="study/run")
    assert result.record["accuracy"] > zero_shot.record["accuracy"]
    assert results_table.main([str(tmp_path / "study")]) == 0
    rows = {row: cells for row, *cells in csv.reader((tmp_path / "study/results.csv").open(encoding="utf-8"))}
    assert rows["Class scale"] == ["-", f"{result.record['accuracy']:.2f}", "20", "features"]
    (table,) = study.read_studies(tmp_path / "study")
    shots, points = pareto.collect_points(table.table)
    assert (shots, points[1]) == (16, pareto.Point("Class scale", 20, result.record["accuracy"], "features"))
    assert (tmp_path / "study/parameters.png").is_file()

    export_classifier.main([str(result.folder)])
    exported = np.load(result.folder / "classifier/class_weights.npz")
    trainer = load_trainer(result.folder, load_classnames(result.folder), cuda=False)
    features = torch.randn(5, exported["weight"].shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = trainer.model_inference(features).numpy()
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    assert np.allclose(unit @ exported["weight"].T + exported["bias"], logits, atol=1e-3, rtol=1e-4)
    learned = load_checkpoint(result.folder / "class_scale/model.pth.tar-50")["state_dict"]
    assert np.allclose(exported["bias"], learned["bias"].numpy())
    assert learned["bias"].abs().max() > 0.1
    assert (learned["scale"] - 1).abs().max() > 0.01


@pytest.mark.usefixtures("_no_onnx")
def test_a_method_that_inherits_its_parents_class_weights_is_not_exported(examples, run, capsys):
    class Plain(TRAINER_REGISTRY.get("ClassScale")):
        """Changes nothing, so it has its parent's class weights."""

    class Scaled(Plain):
        """Has other logits than its parent."""

        def model_inference(self, input):
            return 2 * super().model_inference(input)

    for trainer in (Plain, Scaled):
        TRAINER_REGISTRY.register(trainer)
    for name in ("Plain", "Scaled"):
        result = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, trainer=name, out=name)
        assert (result.record["method"], result.record["group"]) == (name, "")  # not those of the parent
        assert export_classifier.main([str(result.folder)]) == 2
        message = "Scaled replaces model_inference, but inherits linear_head"
        assert (message in capsys.readouterr().err) == (name == "Scaled")
        assert (result.folder / "classifier").exists() == (name == "Plain")
