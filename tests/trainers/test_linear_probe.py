"""The linear probe: the fit, the sweep on validation images, class checksums, and runs."""

import re

import numpy as np
import pytest
import torch

from tests.common import REPOSITORY, assert_same_tensors
from trainers import linear_probe
from trainers.linear_probe import FEATURE_NORM, fit_linear_probe, predict, sweep_regularization
from trainers.shots import bind_classnames
from vlm.similarity import normalize

TINY = ("--config-file", REPOSITORY / "configs/trainers/LinearProbe/tiny.yaml")


def make_clusters(count, classes, seed=0, noise=1.0):
    """Return features (count, 8), drawn around a mean for each class, and their labels (count,)."""
    means = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return means[labels] + noise * torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn(classes):
    from sklearn.linear_model import LogisticRegression

    features, labels = make_clusters(60, classes)
    test_features, _ = make_clusters(20, classes, seed=1)
    inputs, test_inputs = ((FEATURE_NORM * normalize(f.double())).numpy() for f in (features, test_features))
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(inputs, labels.numpy()).predict_proba(test_inputs)
    head = fit_linear_probe(3 * features, labels, 0.1)  # the length of the features has no influence
    np.testing.assert_allclose(predict(head, test_features).softmax(1).detach(), expected, atol=1e-5)


def test_the_sweep_finds_the_peak_of_the_accuracy_to_a_sixteenth_of_a_decade_in_15_fits(monkeypatch):
    """A grid of 8 steps a decade would need 97 fits."""
    fitted_c = []

    def fake_fit(features, labels, c):
        fitted_c.append(c)
        return torch.tensor(c)

    monkeypatch.setattr(linear_probe, "fit_linear_probe", fake_fit)
    monkeypatch.setattr(linear_probe, "predict", lambda head, features: head)
    monkeypatch.setattr(
        linear_probe.shots, "score_candidates", lambda c, labels: [(-abs(np.log10(c.item()) - peak), 0.0)]
    )
    for peak in (-1.375, 3.0, 6.0, -6.0, 5.2):
        fitted_c.clear()
        c, _, _ = sweep_regularization((None, None), (None, None))
        assert abs(np.log10(c) - peak) <= 1 / 16
        assert len(fitted_c) == len(set(fitted_c)) <= 15
        assert min(fitted_c) >= 1e-6
        assert max(fitted_c) <= 1e6


def test_of_equally_accurate_probes_the_one_with_the_lower_cross_entropy_wins():
    shots, validation = make_clusters(40, 4, noise=0.01), make_clusters(8, 4, seed=1, noise=0.01)
    c, _, accuracy = sweep_regularization(shots, validation)
    assert accuracy == 100
    assert c > 1  # the features are separable, so the cross-entropy falls with C


def test_a_run_sweeps_c_and_its_checkpoint_evaluates_to_the_same_accuracy_without_a_sweep(run):
    trained = run(*TINY, "DATASET.NUM_SHOTS", 4, trainer="LinearProbe")
    assert trained.code == 0, trained.error
    assert re.search(r"^C \S+, swept on 40 validation images: \d+\.\d\d% of them$", trained.log, re.MULTILINE)
    assert trained.record["trainable_parameters"] == 10 * (64 + 1)
    assert float(trained.accuracy) > 75
    accuracy = trained.accuracy
    again = run(*TINY, "DATASET.NUM_SHOTS", 4, trainer="LinearProbe")
    loaded = run(*TINY, "--eval-only", "--model-dir", trained.folder, trainer="LinearProbe", out="eval")
    for evaluated in (again, loaded):
        assert evaluated.accuracy == accuracy
        assert "swept" not in evaluated.log


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DATASET.NUM_SHOTS", 0), "There are no validation images to choose on\nC 0.316, not swept\n"),
        (
            ("DATASET.NUM_SHOTS", 1, "DATASET.VAL_IS_TEST", True, "DATASET.SUBSAMPLE_CLASSES", "base"),
            "they are test images (DATASET.VAL_IS_TEST)\nC 0.316, not",
        ),
        (("DATASET.NUM_SHOTS", 1, "TRAINER.LINEARPROBE.C", 2.5), "C 2.5, not swept\n"),
    ],
)
def test_without_validation_images_or_with_a_given_c_there_is_no_sweep(run, options, message):
    result = run(*TINY, *options, trainer="LinearProbe")
    assert result.code == 0, result.error
    assert message in result.log


def test_the_linear_head_gives_the_logits_of_the_trainer(digits_trainer):
    trainer = digits_trainer("LinearProbe")
    torch.nn.init.normal_(trainer.model.weight)
    features = torch.randn(5, 64)
    weight, bias = trainer.linear_head()
    torch.testing.assert_close(normalize(features) @ weight.t() + bias, trainer.model_inference(features))


def test_a_checkpoint_is_not_loaded_for_its_classes_in_another_order():
    source, same, other = (torch.nn.Linear(2, 2) for _ in range(3))
    for model, names in ((source, ["cat", "dog"]), (same, ["cat", "dog"]), (other, ["dog", "cat"])):
        bind_classnames(model, names, torch.device("cpu"))
    same.load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="in another order"):
        other.load_state_dict(source.state_dict())


def test_the_probe_is_fitted_to_images_without_random_crops(run):
    crops = ("INPUT.TRANSFORMS", "['random_resized_crop','random_flip','normalize']")
    options = (*TINY, "DATASET.NUM_SHOTS", 1, "TRAINER.LINEARPROBE.C", 1.0)
    plain = run(*options, trainer="LinearProbe", out="plain")
    cropped = run(*options, *crops, trainer="LinearProbe", out="cropped")
    assert "random resized crop" in cropped.log
    assert_same_tensors(*(result.folder / "linear_probe/model.pth.tar-1" for result in (plain, cropped)))


def test_a_negative_c_is_refused(run):
    refused = run(*TINY, "TRAINER.LINEARPROBE.C", -1, trainer="LinearProbe")
    assert refused.code == 2
    assert "TRAINER.LINEARPROBE.C is -1" in refused.error
