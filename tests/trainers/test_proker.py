"""ProKeR: the regression and its logits against NumPy."""

import numpy as np
import pytest
import torch

from trainers.proker import FIXED, fit_proker
from trainers.shots import collect_shots


def kernel(x, z, beta):
    """Return the kernel matrix by its formula."""
    return np.array([[np.exp(-beta * (1 - a @ b)) for b in z] for a in x])


def make_unit(count, dim, seed):
    """Return features (count, dim) of length 1, in float64."""
    features = np.random.default_rng(seed).normal(size=(count, dim))
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize(("beta", "lambda_"), [(0.5, 0.01), (3.0, 0.05), (10.0, 10.0)])
def test_the_coefficients_solve_the_regression(beta, lambda_):
    S, residual = make_unit(20, 6, 0), np.random.default_rng(1).normal(size=(20, 4))
    expected = np.linalg.solve(kernel(S, S, beta) / lambda_ + np.eye(20), residual)
    tensors = torch.from_numpy(S).float(), torch.from_numpy(residual).float()
    a = fit_proker(*tensors, lambda_, beta)
    np.testing.assert_allclose(a, expected, atol=1e-5)
    lambdas = torch.tensor([7.0, lambda_])[:, None, None]  # several at once, as in the search
    np.testing.assert_allclose(fit_proker(*tensors, lambdas, beta)[1], expected, atol=1e-5)


def test_logits_of_a_fitted_trainer_are_those_of_the_formula(digits_trainer):
    options = ("PROTOCOL", "none", "TRAINER.PROKER.BETA", 2.0, "TRAINER.PROKER.LAMBDA", 0.2)
    trainer = digits_trainer("ProKeR", "DATASET.NUM_SHOTS", 2, *options)
    trainer.run_epoch()
    S, y = (tensor.numpy().astype(np.float64) for tensor in collect_shots(trainer))
    W = trainer.class_features.numpy().astype(np.float64)
    x = make_unit(5, 64, 2)
    a = np.linalg.solve(kernel(S, S, 2.0) / 0.2 + np.eye(20), np.eye(10)[y.astype(int)] - S @ W.T)
    expected = x @ W.T + kernel(x, S, 2.0) @ a
    scale = np.exp(trainer.backbone.clip.logit_scale.item())
    logits = trainer.model_inference(torch.from_numpy(7 * x).float()).detach()  # of any length
    np.testing.assert_allclose(logits / scale, expected, atol=1e-5)


@pytest.mark.parametrize(("shots", "key"), [(1, 1), (3, 2), (8, 8), (40, 16)])
def test_the_fixed_values_are_those_for_the_number_of_shots(digits_trainer, capsys, shots, key):
    trainer = digits_trainer("ProKeR", "DATASET.NUM_SHOTS", shots, "PROTOCOL", "none")
    trainer.run_epoch()
    lambda_, beta = FIXED[key]
    assert f"\nlambda {lambda_:.4g}, beta {beta:.4g}\n" in capsys.readouterr().out
