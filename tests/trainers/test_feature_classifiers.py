"""LP++, CLAP and TaskRes as runs: evaluation, resume, prediction, export, refused data sets, real CLIP features."""

import json

import pytest
import torch

import predict
from inference.export import check_linear_head
from inference.trained_run import load_trainer
from tests.common import REPOSITORY, SHARED, assert_same_tensors, load_tensors, needs_shared
from tests.datasets.shapes import write_images
from vlm.similarity import normalize

FOLDERS = {"LPPlusPlus": "lp_plus_plus", "CLAP": "clap", "TaskRes": "taskres"}
COSINES = {"LPPlusPlus": set(), "CLAP": {"cosine"}, "TaskRes": {"cosine"}}
METHODS = pytest.mark.parametrize("method", FOLDERS)


@pytest.fixture
def fit(run):
    """Return a function that runs a method with its config for the tiny CLIP, at first for 4 epochs."""

    def call(method, *options, source=None, out="run"):
        """``source``: folder of the run whose model is evaluated."""
        config = ("--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml")
        evaluation = ("--eval-only", "--model-dir", source) if source else ()
        options = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 4, *options)
        result = run(*config, *evaluation, *options, trainer=method, out=out)
        assert result.code == 0, result.error
        return result

    return call


@METHODS
def test_a_run_evaluates_predicts_and_exports_the_same_logits(fit, method, digits_root, capsys):
    trained = fit(method)
    assert trained.record["trainable_parameters"] == 10 * (65 if method == "LPPlusPlus" else 64)
    assert fit(method, source=trained.folder, out="eval").accuracy == trained.accuracy
    trainer = load_trainer(trained.folder)
    features = 3 * torch.randn(5, 64)
    weight, bias = (tensor.detach() for tensor in trainer.linear_head())
    logits = trainer.model_inference(features).detach()
    torch.testing.assert_close(normalize(features) @ weight.t() + bias, logits, atol=1e-4, rtol=1e-5)
    check_linear_head(trainer)
    capsys.readouterr()
    image = digits_root / "digits/images/val/3/0013.png"
    assert predict.main([str(image), "--model-dir", str(trained.folder), "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(record["predictions"][0]) == {"class", "probability", "logit"} | COSINES[method]


@pytest.mark.parametrize("method", ["CLAP", "TaskRes"])
def test_a_resumed_run_ends_with_the_same_bits(fit, method):
    """The views are random; CLAP's multipliers come from the checkpoint, without another pass over the shots."""
    options = ("INPUT.TRANSFORMS", "['random_resized_crop','normalize']", "TRAIN.CHECKPOINT_FREQ", 1)
    trained = fit(method, *options)
    folder = trained.folder / FOLDERS[method]
    first, last = (load_tensors(folder / f"model.pth.tar-{epoch}") for epoch in (1, 4))
    assert all(torch.equal(first[key], last[key]) == (key in ("lambda_", "classes")) for key in first)
    expected = (folder / "model.pth.tar-4").rename(folder / "uninterrupted.pth")
    (folder / "checkpoint").write_text("model.pth.tar-2\n", encoding="utf-8")
    resumed = fit(method, *options)
    assert "Shots:" not in resumed.log
    assert_same_tensors(folder / "model.pth.tar-4", expected)
    assert resumed.accuracy == trained.accuracy


def test_zs_lp_is_clap_without_penalty_and_is_evaluated_as_clap(fit):
    zs_lp = fit("CLAP", "TRAINER.CLAP.PENALTY", False)
    assert "Multipliers" not in zs_lp.log
    assert not load_tensors(zs_lp.folder / "clap/model.pth.tar-4")["lambda_"].any()
    assert fit("CLAP", source=zs_lp.folder, out="eval").accuracy == zs_lp.accuracy


@METHODS
def test_initial_weights_are_those_of_a_checkpoint_or_refused(fit, run, method):
    trained = fit(method)
    (checkpoint,) = (trained.folder / FOLDERS[method]).glob("model.pth.tar-*")
    config = ("--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml")
    result = run(*config, "--eval-only", "MODEL.INIT_WEIGHTS", checkpoint, trainer=method, out="eval")
    if method == "LPPlusPlus":
        assert (result.code, "starts from the training images" in result.error) == (2, True)
    else:
        assert result.accuracy == trained.accuracy


@METHODS
def test_one_class_is_refused_with_the_method_that_takes_it(run, method, tmp_path):
    write_images(tmp_path / "one/photos", [f"cat/{i}.jpg" for i in range(8)])
    folder = ("--root", tmp_path / "one", "DATASET.NAME", "ImageFolder", "DATASET.FOLDER", "photos")
    refused = run(*folder, trainer=method)
    assert refused.code == 2
    assert f"{method} needs 2 classes or more; ImageFolder has 1. A zero-shot method takes any" in refused.error


@METHODS
def test_a_class_without_shots_is_refused_where_its_statistics_are_needed(fit, run, method, digits_root, tmp_path):
    images = [[f"images/train/{c}/{path.name}", c, name] for c, name in ((0, "zero"), (7, "seven"))
              for path in sorted((digits_root / f"digits/images/train/{c}").iterdir())[:2]]  # fmt: skip
    path = tmp_path / "shots.json"
    path.write_text(json.dumps({"train": images}), encoding="utf-8")
    if method == "TaskRes":
        fit(method, "DATASET.FEWSHOT_FILE", path)
    else:
        refused = run("DATASET.FEWSHOT_FILE", path, trainer=method)
        assert refused.code == 2
        assert f"{method} needs a training image of each class; without: one, two, three" in refused.error
        assert "--trainer TipAdapter or TaskRes does without" in refused.error


# Accuracy (%) on the test images that a method must reach with this number of shots.
FLOORS = [("CLAP", 1, 90.5), ("CLAP", 16, 92), ("TaskRes", 16, 90), ("LPPlusPlus", 4, 88), ("LPPlusPlus", 16, 89.5)]


@needs_shared
@pytest.mark.parametrize(("method", "shots", "floor"), FLOORS)
def test_accuracy_on_real_clip_features(fit, method, shots, floor):
    pets = ("DATASET.NAME", "Features", "DATASET.FEATURES", SHARED / "data/clip-vitb32-pets24.npz")
    epochs = {"LPPlusPlus": 1, "CLAP": 300, "TaskRes": 200}[method]
    result = fit(method, *pets, "DATASET.NUM_SHOTS", shots, "OPTIM.MAX_EPOCH", epochs)
    assert result.record["splits"]["test"]["images"] == 2383
    assert float(result.accuracy) >= floor
