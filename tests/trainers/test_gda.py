"""GDA: the discriminant and its logits against NumPy."""

import numpy as np
import pytest
import torch

from dassl.utils import UserError
from trainers.gda import fit_gda
from trainers.shots import collect_shots


def fit_plainly(f, y, classes):
    """Return W and b by the formulas of the authors' code, in float64."""
    f, d = f.astype(np.float64), f.shape[1]
    mus = [f[y == label].mean(0) for label in range(classes)]
    centred = np.concatenate([f[y == label] - mus[label] for label in range(classes)])
    Sigma = np.cov(centred.T)
    precision = d * np.linalg.pinv((len(centred) - 1) * Sigma + np.trace(Sigma) * np.eye(d))
    W = np.stack([precision @ mu for mu in mus])
    b = np.array([np.log(1 / classes) - mu @ precision @ mu / 2 for mu in mus])
    return W, b


def test_the_discriminant_is_that_of_the_formula_with_unequal_numbers_of_images():
    y = np.array([0, 2, 1, 1, 0, 2, 2, 1, 0, 2, 2])
    f = np.random.default_rng(0).normal(size=(11, 6)) + 3 * np.eye(6)[y]
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    W, b = fit_gda(torch.from_numpy(f), torch.from_numpy(y), 3)
    expected_W, expected_b = fit_plainly(f, y, 3)
    np.testing.assert_allclose(W, expected_W, atol=1e-5 * np.abs(expected_W).max())
    np.testing.assert_allclose(b, expected_b, rtol=1e-5)


def test_logits_of_a_fitted_trainer_are_those_of_the_formula(digits_trainer):
    trainer = digits_trainer("GDA", "DATASET.NUM_SHOTS", 2, "PROTOCOL", "none", "TRAINER.GDA.ALPHA", 0.01)
    trainer.run_epoch()
    f, y = (tensor.numpy() for tensor in collect_shots(trainer))
    W, b = fit_plainly(f, y, 10)
    features = np.random.default_rng(1).normal(size=(5, 64))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scale = np.exp(trainer.backbone.clip.logit_scale.item())
    expected = scale * unit @ trainer.class_features.numpy().T + 0.01 * (unit @ W.T + b)
    logits = trainer.model_inference(torch.from_numpy(features).float()).detach()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_equal_features_in_each_class_are_refused():
    f = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    with pytest.raises(UserError, match="^GDA needs a covariance"):
        fit_gda(f.repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2]), 3)
