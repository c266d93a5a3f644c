"""CLAP and ZS-LP: the multipliers and five steps by the paper's formulas."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.trainers.plain import (
    cosine_cross_entropy,
    learning_rates,
    make_batches,
    softmax,
    to_numpy,
    train_steps,
    unit,
)
from trainers import shots


def test_a_multiplier_is_the_mean_zero_shot_probability_of_a_class_for_its_shots(digits_trainer, monkeypatch):
    trainer, scale = digits_trainer("CLAP"), 14.0
    clip = copy.deepcopy(trainer.backbone.clip)  # trainers of other tests share the original
    clip.logit_scale.data.fill_(np.log(scale))
    trainer.backbone = dataclasses.replace(trainer.backbone, clip=clip)
    (f, _), *_ = make_batches(1)
    f, labels = shots.normalize(f), torch.tensor([0, 0, 0, *range(1, 10), *[5] * 8])
    monkeypatch.setattr(shots, "collect_shots", lambda trainer: (f, labels))
    trainer.set_multipliers()
    p = softmax(scale * to_numpy(f) @ unit(to_numpy(trainer.t)).T)
    expected = [p[labels.numpy() == c, c].mean() for c in range(10)]
    np.testing.assert_allclose(to_numpy(trainer.model.lambda_), expected, atol=1e-6)


@pytest.mark.parametrize("penalty", [True, False])
def test_five_steps_of_sgd_are_those_of_the_formula(digits_trainer, penalty, capsys):
    trainer, batches = digits_trainer("CLAP", "TRAINER.CLAP.PENALTY", penalty), make_batches(5)
    trainer.before_train()
    assert ("Multipliers of the penalty" in capsys.readouterr().out) == penalty
    lambda_ = to_numpy(trainer.model.lambda_)
    assert (lambda_ > 0).all() if penalty else not lambda_.any()
    scale = trainer.backbone.clip.logit_scale.exp().item()
    t = to_numpy(trainer.t)
    np.testing.assert_allclose(np.linalg.norm(t, axis=1), 10, rtol=1e-5)
    w, velocity, expected = t, 0, []
    for lr, (f, labels) in zip(learning_rates(0.1, 300, 5), batches, strict=True):
        loss, gradient = cosine_cross_entropy(to_numpy(f), labels.numpy(), w, scale)
        expected.append(loss + (lambda_ * ((w - t) ** 2).sum(1)).sum() / 10)
        velocity = 0.9 * velocity + gradient + 2 * lambda_[:, None] * (w - t) / 10
        w = w - lr * velocity
    assert train_steps(trainer, batches) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(to_numpy(trainer.model.w), w, atol=1e-5)
    assert np.abs(w - t).max() > 0.01
    weight, bias = trainer.linear_head()
    np.testing.assert_allclose(to_numpy(weight), scale * unit(w), atol=1e-4)
    assert not bias.any()


def test_the_penalty_holds_the_weights_near_the_text_features(digits_trainer):
    distances = []
    for penalty in (True, False):
        trainer = digits_trainer("CLAP", "TRAINER.CLAP.PENALTY", penalty)
        trainer.before_train()
        train_steps(trainer, make_batches(1) * 30)
        distances.append((trainer.model.w - trainer.t).norm().item())
    assert distances[0] < 0.8 * distances[1]
