"""LP++: start, step sizes and steps by the paper's formulas, and the chosen iteration."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.common import REPOSITORY
from tests.trainers.plain import make_batches, to_numpy
from trainers import shots
from trainers.lp_plus_plus import minimize
from vlm.similarity import normalize

TINY = ("--config-file", REPOSITORY / "configs/trainers/LPPlusPlus/tiny.yaml")


def make_problem():
    """Return unit features (20, 64), labels, and unit text features (4, 64) that lie near those of their classes."""
    ((f, labels),) = make_batches(1, classes=4)
    f = normalize(f)
    return f, labels, normalize(torch.stack([f[labels == k].mean(0) for k in range(4)]) + 0.1 * f[:4])


def minimize_by_autograd(f, labels, t, iterations):
    """Return (w, alpha, loss before the step) of each iteration, by gradients of PyTorch in double precision."""
    f, t = f.double(), t.double()
    classes = range(len(t))
    w = torch.stack([f[labels == k].sum(0) for k in classes])
    alpha = torch.full((len(t),), float(np.mean([250 * (f[labels == k] @ t[k]).mean() for k in classes])))
    alpha, n = alpha.double(), len(f)
    step_w = 4 * n / np.linalg.eigvalsh(to_numpy(f).T @ to_numpy(f)).max()
    step_alpha = n / (4 * max(float(((f @ t[k]) ** 2).sum()) for k in classes))

    def loss(w, alpha):
        return F.cross_entropy(torch.stack([f @ (w[k] + alpha[k] * t[k]) for k in classes], 1), labels)

    results = []
    for iteration in range(1, iterations + 1):
        w.requires_grad_()
        value = loss(w, alpha)
        w = (w - step_w * torch.autograd.grad(value, w)[0]).detach()
        if iteration % 10 == 0:
            alpha.requires_grad_()
            alpha = (alpha - step_alpha * torch.autograd.grad(loss(w, alpha), alpha)[0]).detach()
        results.append((w, alpha, value.item()))
    return results


def test_iterations_are_those_of_the_formulas_and_lower_the_loss():
    f, labels, t = make_problem()
    expected = minimize_by_autograd(f, labels, t, 25)
    results = list(minimize(f, F.one_hot(labels).float(), t, 25))
    assert len(results) == 25
    for (w, alpha), (expected_w, expected_alpha, _) in zip(results, expected, strict=True):
        np.testing.assert_allclose(to_numpy(w), to_numpy(expected_w), atol=1e-5)
        np.testing.assert_allclose(to_numpy(alpha), to_numpy(expected_alpha), rtol=1e-6)
    assert (results[9][1] != results[8][1]).any()  # alpha moves with every tenth step
    losses = [F.cross_entropy(f @ (w + alpha[:, None] * t).t(), labels).item() for w, alpha in results[:-1]]
    assert losses == pytest.approx([loss for *_, loss in expected[1:]], abs=1e-5)
    assert losses == sorted(losses, reverse=True)


@pytest.fixture
def fit(digits_trainer, monkeypatch):
    """Return a function that runs LP++ on random shots of the digits, with these validation features and labels."""

    def call(validation, *options):
        trainer = digits_trainer("LPPlusPlus", "TRAINER.LPPLUSPLUS.ITERATIONS", 30, *options)
        ((f, labels),) = make_batches(1)
        monkeypatch.setattr(shots, "collect_shots", lambda trainer, views: (normalize(f), labels))
        monkeypatch.setattr(shots, "collect_validation_features", lambda trainer: validation)
        trainer.run_epoch()
        return trainer, minimize_by_autograd(normalize(f), labels, trainer.t, 30)

    return call


def test_the_iteration_with_the_best_score_on_validation_images_is_kept(fit, capsys):
    """Four labels of twenty are wrong, so that the cross-entropy rises again in later iterations."""
    ((shot, shot_labels),) = make_batches(1)
    noise = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    f, labels = shot.repeat(2, 1) + noise, ((shot_labels + (torch.arange(20) < 4)) % 10).repeat(2)
    trainer, iterates = fit((f, labels))
    scores = []
    for w, alpha, _ in iterates:
        logits = normalize(f).double() @ (w + alpha[:, None] * trainer.t.double()).t()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        scores.append((accuracy, -F.cross_entropy(logits, labels).item()))
    best = scores.index(max(scores))
    assert 0 < best < 29  # else, the first or last iteration would pass
    np.testing.assert_allclose(to_numpy(trainer.model.w), to_numpy(iterates[best][0]), atol=1e-4)
    output = capsys.readouterr().out
    assert f"Iteration {best + 1} of 30; " in output
    assert f"Chosen on 40 validation images: {100 * scores[best][0]:.2f}% of them\n" in output


def test_without_validation_images_the_last_iteration_is_kept(fit):
    trainer, iterates = fit(None)
    w, alpha, _ = iterates[-1]
    np.testing.assert_allclose(to_numpy(trainer.model.w), to_numpy(w), atol=1e-4)
    features = torch.randn(7, 64, generator=torch.Generator().manual_seed(4))
    expected = normalize(features).double() @ (w + alpha[:, None] * trainer.t.double()).t()
    torch.testing.assert_close(trainer.model_inference(features).double(), expected, atol=1e-3, rtol=1e-4)


def test_protocol_none_chooses_nothing(run):
    result = run(*TINY, "DATASET.NUM_SHOTS", 1, "PROTOCOL", "none", trainer="LPPlusPlus")
    assert result.code == 0, result.error
    assert "Nothing is chosen (PROTOCOL none)\nIteration 300 of 300; " in result.log


def test_a_run_that_was_killed_in_its_only_epoch_starts_again_to_the_same_bits(run, monkeypatch):
    options = (*TINY, "DATASET.NUM_SHOTS", 2, "TRAINER.LPPLUSPLUS.ITERATIONS", 20)
    expected = run(*options, trainer="LPPlusPlus", out="uninterrupted")
    monkeypatch.setattr("trainers.lp_plus_plus.minimize", interrupt)
    killed = run(*options, trainer="LPPlusPlus")
    assert killed.code == 130
    assert not list(killed.folder.glob("lp_plus_plus/*"))
    monkeypatch.setattr("trainers.lp_plus_plus.minimize", minimize)
    restarted = run(*options, trainer="LPPlusPlus")
    states = [
        torch.load(result.folder / "lp_plus_plus/model.pth.tar-1", weights_only=True)["state_dict"]
        for result in (expected, restarted)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in ("w", "alpha"))
    assert restarted.accuracy == expected.accuracy


def interrupt(*arguments):
    """Yield three iterates, then end as by Ctrl-C."""
    for iterate, _ in zip(minimize(*arguments), range(3), strict=False):
        yield iterate
    raise KeyboardInterrupt


def test_no_iteration_is_refused(run):
    refused = run(*TINY, "TRAINER.LPPLUSPLUS.ITERATIONS", 0, trainer="LPPlusPlus")
    assert refused.code == 2
    assert "TRAINER.LPPLUSPLUS.ITERATIONS is 0" in refused.error
