"""GDA, ProKeR and APE: runs, checkpoints, predictions, exports, the protocol, bad input, accuracy on real features."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dassl.utils import UserError
from inference.export import check_linear_head
from inference.trained_run import load_trainer
from tests.common import REPOSITORY, load_tensors, needs_shared
from tests.trainers.pets import measure_test_accuracy
from trainers import shots
from trainers.ape import APE
from trainers.gda import GDA
from trainers.proker import ProKeR
from trainers.shots import check_shots, search_settings
from trainers.tip_adapter import TipAdapter

CROPS = ("INPUT.TRANSFORMS", "['random_resized_crop','normalize']")
METHODS = pytest.mark.parametrize("method", ["GDA", "ProKeR", "APE"])


def tiny(method):
    """Return the arguments that name a method's config for the tiny CLIP."""
    return "--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml"


@METHODS
def test_a_checkpoint_evaluates_and_predicts_without_the_shots(run, method):
    trained = run(*tiny(method), "DATASET.NUM_SHOTS", 2, trainer=method)
    assert trained.code == 0, trained.error
    assert trained.record["trainable_parameters"] == 0
    assert "Shots: 20 features of 64 numbers, 1 view each" in trained.log
    assert len(re.findall(r"^Searched on 20 validation images: \d+\.\d\d% of them$", trained.log, re.MULTILINE)) == 1
    assert float(trained.accuracy) > 70
    evaluation = ("--eval-only", "--model-dir", trained.folder, "DATASET.NUM_SHOTS", 4)
    loaded = run(*tiny(method), *evaluation, trainer=method, out="eval")
    assert loaded.accuracy == trained.accuracy
    assert "Shots:" not in loaded.log
    trainer = load_trainer(trained.folder)  # as predict.py --model-dir: without data
    (folder,) = (path.parent for path in trained.folder.glob("*/model.pth.tar-1"))
    for name, tensor in load_tensors(folder / "model.pth.tar-1").items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor)
    if method == "GDA":
        check_linear_head(trainer)  # its logits are linear: tools/export_classifier.py exports it
        features = torch.randn(5, 64)
        weight, bias = trainer.linear_head()
        unit = features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(trainer.model_inference(features), unit @ weight.t() + bias)
    else:
        with pytest.raises(UserError, match=f"^{method} has no class weights"):
            check_linear_head(trainer)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("GDA", "alpha 0.1"),
        ("ProKeR", "lambda 0.05, beta 2.6"),
        ("APE", "alpha 2, beta 1"),
    ],
)
def test_with_protocol_none_the_values_are_those_of_the_paper(run, method, line):
    result = run(*tiny(method), "DATASET.NUM_SHOTS", 3, "PROTOCOL", "none", trainer=method)
    assert result.code == 0, result.error
    assert f"Nothing is chosen (PROTOCOL none)\n{line}\n" in result.log


@METHODS
def test_an_unusable_option_is_refused(run, method):
    for options, message in (
        ((f"TRAINER.{method.upper()}.AUGMENT_EPOCH", 0), f"TRAINER.{method.upper()}.AUGMENT_EPOCH is 0"),
        (("MODEL.INIT_WEIGHTS", "a.pth"), f"{method} starts from the training images, not from MODEL.INIT_WEIGHTS"),
        (("DATASET.TEMPLATE", "a photo"), "DATASET.TEMPLATE"),
    ):
        refused = run(*tiny(method), *options, trainer=method)
        assert refused.code == 2
        assert message in refused.error


def test_a_class_without_an_image_is_refused():
    names = {0: "cat", 1: "dog", 2: "fox"}
    trainer = SimpleNamespace(cfg=SimpleNamespace(TRAINER=SimpleNamespace(NAME="GDA")), lab2cname=names)
    check_shots(trainer, torch.tensor([2, 1, 0, 1]))
    problem = (
        "^GDA needs a training image of each class; without: cat, fox. --trainer TipAdapter or TaskRes does without$"
    )
    with pytest.raises(UserError, match=problem):
        check_shots(trainer, torch.tensor([1, 1]))


def test_the_search_tries_all_combinations_after_the_initial_values(monkeypatch):
    features, labels, tried = 7 * torch.randn(3, 4), torch.tensor([0, 1, 0]), []
    monkeypatch.setattr(shots, "collect_validation_features", lambda _: (features, labels))
    zero_shot = torch.tensor([[0.0, 3.0], [0.0, 3.0], [0.0, 3.0]])
    trainer = SimpleNamespace(backbone=SimpleNamespace(logits=lambda *_: zero_shot), class_features=None)

    def logits(unit, first, second, third):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
        tried.extend((value, second, third) for value in first.flatten().tolist())
        right = torch.nn.functional.one_hot(labels, 2) * (4.0 if (second, third) == (5, 8) else 0.0)
        return first * right

    grids = [[0.0, 1.0, 2.0], [4, 5], [7, 8, 9]]
    initial = {"a": 0.5, "b": 1.5, "c": 2.5}
    assert search_settings(trainer, initial, grids, logits) == (2, 5, 8)  # of the right ones, the lowest cross-entropy
    assert tried == [(0.5, 1.5, 2.5), *[(a, b, c) for b in grids[1] for c in grids[2] for a in grids[0]]]
    assert search_settings(trainer, initial, grids, lambda unit, first, *_: 0 * first * zero_shot) == (
        0.5,
        1.5,
        2.5,
    )  # a tie


@needs_shared
@pytest.mark.parametrize(
    ("method", "shots", "floor"), [(GDA, 4, 91), (GDA, 16, 90), (ProKeR, 4, 92), (ProKeR, 16, 92.5)]
)
def test_accuracy_on_real_features_is_as_high_as_that_of_the_prototypes(method, shots, floor, monkeypatch):
    assert measure_test_accuracy(method, shots, "validation", monkeypatch) >= floor


@needs_shared
@pytest.mark.parametrize(
    ("shots", "protocol"), [(shots, protocol) for shots in (1, 4, 16) for protocol in ("validation", "none")]
)
def test_ape_is_no_worse_than_tip_adapter_by_more_than_half_a_percent(shots, protocol, monkeypatch):
    ape, tip_adapter = (measure_test_accuracy(method, shots, protocol, monkeypatch) for method in (APE, TipAdapter))
    assert ape >= tip_adapter - 0.5


@needs_shared
def test_one_view_of_one_image_a_class_has_no_covariance(monkeypatch):
    with pytest.raises(UserError, match="^GDA needs a covariance, .* use ProKeR or 2 shots$"):
        measure_test_accuracy(GDA, 1, "none", monkeypatch)


def test_views_of_one_image_have_a_covariance(run):
    refused = run(*tiny("GDA"), "DATASET.NUM_SHOTS", 1, trainer="GDA")
    assert (refused.code, "GDA needs a covariance" in refused.error) == (2, True)
    options = ("TRAINER.GDA.AUGMENT_EPOCH", 3, "DATASET.NUM_SHOTS", 1, *CROPS)
    result = run(*tiny("GDA"), *options, trainer="GDA", out="crops")
    assert result.code == 0, result.error
    assert "Shots: 10 features of 64 numbers, 3 views each" in result.log


def test_views_are_samples_of_their_own_if_they_are_not_averaged(digits_trainer, monkeypatch):
    trainer = digits_trainer("GDA", *CROPS)
    views, labels = torch.randn(2, 10, 64), torch.arange(10)
    next_view = iter(views)
    monkeypatch.setattr(shots, "collect_features", lambda *_: (next(next_view), labels))
    features, repeated = shots.collect_shots(trainer, 2, average=False)
    expected = views.reshape(20, 64).numpy()
    np.testing.assert_allclose(features, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert repeated.tolist() == [*range(10), *range(10)]
