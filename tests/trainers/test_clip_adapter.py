"""CLIP-Adapter: its logits, a run, and refused options."""

import numpy as np
import pytest
import torch

from tests.common import REPOSITORY, load_tensors

TINY = ("--config-file", REPOSITORY / "configs/trainers/CLIPAdapter/tiny.yaml")


def test_logits_are_those_of_the_formula_and_the_adapter_takes_features_that_are_not_normalised(digits_trainer):
    """Normalised features give the same logits to rounding, as an adapter without biases is homogeneous; but the
    adapters in the authors' checkpoints were trained on features that are not normalised."""
    trainer, adapter_inputs = digits_trainer("CLIPAdapter", "TRAINER.CLIPADAPTER.RATIO", 0.3), []
    trainer.model.fc.register_forward_pre_hook(lambda module, inputs: adapter_inputs.extend(inputs))
    features = 7 * torch.randn(5, 64)
    first, second = (weight.numpy() for weight in trainer.model.state_dict().values())
    f = features.numpy()
    mixed = 0.3 * np.maximum(np.maximum(f @ first.T, 0) @ second.T, 0) + 0.7 * f
    cosines = mixed / np.linalg.norm(mixed, axis=1, keepdims=True) @ trainer.class_features.numpy().T
    expected = torch.from_numpy(np.exp(trainer.backbone.clip.logit_scale.item()) * cosines).float()
    torch.testing.assert_close(trainer.model_inference(features).detach(), expected)
    assert torch.equal(adapter_inputs[0], features)


def test_a_run_trains_the_adapter_whose_checkpoint_gives_the_same_accuracy(run):
    options = (*TINY, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 30, "OPTIM.LR", 0.05, "TRAIN.CHECKPOINT_FREQ", 15)
    trained = run(*options, trainer="CLIPAdapter")
    assert trained.code == 0, trained.error
    assert trained.record["trainable_parameters"] == 2 * 64 * 16
    losses = [float(line.split("loss ")[1].split()[0]) for line in trained.log.splitlines() if "epoch [" in line]
    assert losses[-1] < losses[0] - 0.05
    first, last = (load_tensors(trained.folder / f"clip_adapter/model.pth.tar-{epoch}") for epoch in (15, 30))
    assert list(first) == ["fc.0.weight", "fc.2.weight"]  # as in the authors' checkpoints
    assert all(not torch.equal(first[key], last[key]) for key in first)
    loaded = run(*TINY, "--eval-only", "--model-dir", trained.folder, trainer="CLIPAdapter", out="eval")
    assert loaded.accuracy == trained.accuracy
    weights = trained.folder / "clip_adapter/model.pth.tar-30"
    started = run(*TINY, "--eval-only", "MODEL.INIT_WEIGHTS", weights, trainer="CLIPAdapter", out="started")
    assert started.accuracy == trained.accuracy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.CLIPADAPTER.RATIO", 1.5), "TRAINER.CLIPADAPTER.RATIO is 1.5; it must be from 0 to 1"),
        (("TRAINER.CLIPADAPTER.REDUCTION", 65), "REDUCTION is 65; it must be from 1 to the features' width, 64"),
        (("DATASET.TEMPLATE", "a photo"), "has no {}"),
    ],
)
def test_an_unusable_option_is_refused_with_its_limits(run, options, message):
    refused = run(*TINY, *options, trainer="CLIPAdapter")
    assert refused.code == 2
    assert message in refused.error
