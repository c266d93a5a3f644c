"""APE: the channels, the divergence and the logits against NumPy."""

import numpy as np
import pytest
import torch

from trainers.ape import compute_divergence, select_channels
from trainers.shots import collect_shots


def make_unit(count, dim, seed):
    """Return features (count, dim) of length 1, in float64."""
    return shorten(np.random.default_rng(seed).normal(size=(count, dim)))


def shorten(features):
    """Return the features, scaled to length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def select_plainly(W, F, y, Q, lambda_):
    """Return the indices of Q channels by the loops of the authors' code."""
    samples = [[W[label], *F[y == label]] for label in range(len(W))]
    similarity, count = np.zeros(W.shape[1]), 0
    for i in range(len(W)):
        for j in range(len(W)):
            if i != j:
                similarity += sum(a * b for a in samples[i] for b in samples[j])
                count += len(samples[i]) * len(samples[j])
    criterion = -lambda_ * similarity / count + (1 - lambda_) * W.var(0, ddof=1)
    return np.argsort(-criterion)[:Q]


def diverge_plainly(keys, W, y):
    """Return the divergence of one-hot labels from the softmax of the cosines, in bits."""
    p = np.exp(keys @ W.T)
    p /= p.sum(1, keepdims=True)
    one_hot = np.eye(len(W))[y]
    return (one_hot * np.log2((one_hot + 1e-6) / (p + 1e-6))).sum(1, keepdims=True)


def test_channels_and_divergence_are_those_of_the_formulas_with_unequal_numbers_of_shots():
    W, F, y = make_unit(4, 12, 0), make_unit(9, 12, 1), np.array([0, 1, 1, 3, 2, 2, 2, 0, 1])
    tensors = torch.from_numpy(W).float(), torch.from_numpy(F).float(), torch.from_numpy(y)
    for lambda_ in (0.0, 0.3, 0.7, 1.0):
        mask = select_channels(*tensors, 5, lambda_)
        assert sorted(mask.nonzero().flatten().tolist()) == sorted(select_plainly(W, F, y, 5, lambda_))
    np.testing.assert_allclose(compute_divergence(tensors[1], tensors[0], tensors[2]), diverge_plainly(F, W, y), 1e-5)


def test_logits_of_a_fitted_trainer_are_those_of_the_formula(digits_trainer):
    options = {"ALPHA": 1.5, "BETA": 3.0, "GAMMA": 0.25, "LAMBDA": 0.4, "CHANNELS": 0.5}
    settings = [word for name, value in options.items() for word in (f"TRAINER.APE.{name}", value)]
    trainer = digits_trainer("APE", "DATASET.NUM_SHOTS", 2, "PROTOCOL", "none", *settings)
    trainer.run_epoch()
    F, y = (tensor.numpy() for tensor in collect_shots(trainer))
    F, W, f = F.astype(np.float64), trainer.class_features.numpy().astype(np.float64), make_unit(5, 64, 2)
    kept = select_plainly(W, F, y, 32, 0.4)
    f_kept, F_kept, W_kept = (shorten(features[:, kept]) for features in (f, F, W))
    values = np.eye(10)[y] * np.exp(0.25 * diverge_plainly(F_kept, W_kept, y))
    expected = np.exp(trainer.backbone.clip.logit_scale.item()) * f @ W.T
    expected += 1.5 * np.exp(-3 * (1 - f_kept @ F_kept.T)) @ values
    logits = trainer.model_inference(torch.from_numpy(7 * f).float()).detach()  # of any length
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("key", "value"), [("CHANNELS", 1.5), ("LAMBDA", 7.0), ("LAMBDA", -0.5), ("AUGMENT_EPOCH", 0)])
def test_settings_out_of_range_are_refused(run, key, value):
    refused = run(f"TRAINER.APE.{key}", value, "TRAINER.NAME", "APE", trainer="APE")
    assert refused.code == 2
    assert f"TRAINER.APE.{key} is {value}" in refused.error
