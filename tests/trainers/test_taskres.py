"""TaskRes: five steps by the paper's formula, and refused values."""

import numpy as np
import pytest

from tests.common import REPOSITORY
from tests.trainers.plain import cosine_cross_entropy, learning_rates, make_batches, to_numpy, train_steps, unit

TINY = ("--config-file", REPOSITORY / "configs/trainers/TaskRes/tiny.yaml")


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_five_steps_of_adam_are_those_of_the_formula(digits_trainer, alpha):
    """The text features have length 10; the weight decay is that of Adam, Dassl's default, as in the authors' code."""
    trainer, batches = digits_trainer("TaskRes", "TRAINER.TASKRES.ALPHA", alpha), make_batches(5)
    t, scale = to_numpy(trainer.t), trainer.backbone.clip.logit_scale.exp().item()
    np.testing.assert_allclose(np.linalg.norm(t, axis=1), 10, rtol=1e-5)
    x = m = v = np.zeros((10, 64))
    expected = []
    for step, (lr, (f, labels)) in enumerate(zip(learning_rates(2e-3, 200, 5), batches, strict=True), 1):
        loss, gradient = cosine_cross_entropy(to_numpy(f), labels.numpy(), t + alpha * x, scale)
        gradient = alpha * gradient + 5e-4 * x
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x = x - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected.append(loss)
    assert train_steps(trainer, batches) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(to_numpy(trainer.model.x), x, atol=1e-5)
    weight, bias = trainer.linear_head()
    np.testing.assert_allclose(to_numpy(weight), scale * unit(t + alpha * x), atol=1e-4)
    assert not bias.any()


def test_before_training_the_logits_are_those_of_zero_shot_clip(digits_trainer):
    (features, _), *_ = make_batches(1)
    trainers = (digits_trainer("TaskRes"), digits_trainer("TaskRes", "TRAINER.NAME", "ZeroshotCLIP"))
    logits, expected = (to_numpy(trainer.model_inference(features)) for trainer in trainers)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_an_alpha_of_zero_is_refused(run):
    refused = run(*TINY, "TRAINER.TASKRES.ALPHA", 0.0, trainer="TaskRes")
    assert refused.code == 2
    assert "TRAINER.TASKRES.ALPHA is 0.0; it must be above 0" in refused.error
