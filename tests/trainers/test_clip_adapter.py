"""CLIP-Adapter: the adapter and the mixture, a run."""

import numpy as np
import pytest
import torch

from tests.common import REPOSITORY, tensors
from trainers.clip_adapter import Adapter, mix

TINY = ("--config-file", REPOSITORY / "configs/trainers/CLIPAdapter/tiny.yaml")


def test_the_adapter_is_a_bottleneck():
    adapter, features = Adapter(8, 4), torch.randn(5, 8)
    first, second = adapter.state_dict().values()
    assert (first.shape, second.shape) == ((2, 8), (8, 2))
    assert list(adapter.state_dict()) == ["fc.0.weight", "fc.2.weight"]  # as in the authors' checkpoints
    torch.testing.assert_close(adapter(features), ((features @ first.t()).relu() @ second.t()).relu())


def test_the_mixture():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 10.0]])
    torch.testing.assert_close(mix(a, b, 0.2), torch.tensor([[0.8, 2.0]]))


def test_logits_by_hand(digits_trainer):
    trainer = digits_trainer("CLIPAdapter", "TRAINER.CLIPADAPTER.RATIO", 0.3)
    features = 7 * torch.randn(5, 64)
    first, second = (weight.numpy() for weight in trainer.model.state_dict().values())
    f = features.numpy()
    mixed = 0.3 * np.maximum(np.maximum(f @ first.T, 0) @ second.T, 0) + 0.7 * f
    cosines = mixed / np.linalg.norm(mixed, axis=1, keepdims=True) @ trainer.class_features.numpy().T
    expected = torch.from_numpy(np.exp(trainer.backbone.clip.logit_scale.item()) * cosines).float()
    torch.testing.assert_close(trainer.model_inference(features).detach(), expected)


def test_the_adapter_is_given_features_as_clip_gives_them(digits_trainer):
    """Of another length they would give the same logits, but for rounding: without biases, twice the feature gives
    twice the output. The checkpoints of the authors' code are of features as they are."""
    trainer, given = digits_trainer("CLIPAdapter"), []
    trainer.model.register_forward_pre_hook(lambda module, inputs: given.extend(inputs))
    features = 7 * torch.randn(5, 64)
    trainer.model_inference(features)
    assert torch.equal(given[0], features)


def test_a_run_trains_the_adapter_alone(run):
    options = (*TINY, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    trained = run(*options, trainer="CLIPAdapter")
    assert trained.code == 0, trained.error
    assert trained.record["trainable_parameters"] == 2 * 64 * 16
    first, last = (tensors(trained.folder / f"clip_adapter/model.pth.tar-{epoch}") for epoch in (1, 2))
    assert all(not torch.equal(first[key], last[key]) for key in ("fc.0.weight", "fc.2.weight"))
    loaded = run(*TINY, "--eval-only", "--model-dir", trained.folder, trainer="CLIPAdapter", out="eval")
    assert loaded.accuracy == trained.accuracy
    weights = trained.folder / "clip_adapter/model.pth.tar-2"
    started = run(*TINY, "--eval-only", "MODEL.INIT_WEIGHTS", weights, trainer="CLIPAdapter", out="started")
    assert started.accuracy == trained.accuracy


def test_without_adapted_features_it_is_zero_shot_clip(run):
    options = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TRAINER.CLIPADAPTER.RATIO", 0.0)
    assert (
        run(*TINY, *options, trainer="CLIPAdapter").accuracy
        == run("--eval-only", trainer="ZeroshotCLIP", out="zero").accuracy
    )


def test_its_loss_falls(run):
    done = run(*TINY, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 30, "OPTIM.LR", 0.05, trainer="CLIPAdapter")
    losses = [float(line.split("loss ")[1].split()[0]) for line in done.log.splitlines() if line.startswith("epoch [")]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.CLIPADAPTER.RATIO", 1.5), "TRAINER.CLIPADAPTER.RATIO is 1.5; it goes from 0 to 1"),
        (
            ("TRAINER.CLIPADAPTER.REDUCTION", 65),
            "TRAINER.CLIPADAPTER.REDUCTION is 65; it goes from 1 to the features' width, 64",
        ),
        (("DATASET.TEMPLATE", "a photo"), "has no {}"),
    ],
)
def test_what_cannot_be_is_refused(run, options, message):
    refused = run(*TINY, *options, trainer="CLIPAdapter")
    assert refused.code == 2
    assert message in refused.error
