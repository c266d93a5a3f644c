"""CLIPFineTune's model and training steps: trainable parts, optimizer, captions, and initial weights."""

from __future__ import annotations

import pytest
import torch

from dassl.utils import UserError
from trainers.finetune import FineTunedCLIP, reset_weights, set_trainable
from vlm import openai
from vlm.similarity import normalize
from vlm.tiny.pretrain import ARCHITECTURE

VIT = (16, 32, 2, 64, 16, 77, 1000, 64, 1, 2)
PROJECTIONS = ("TRAINER.FINETUNE.PARTS", '["projections"]')
SHORT = ("OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)


def test_the_image_encoder_is_not_used_after_feature_extraction_if_the_text_part_alone_is_trained(pairs_trainer):
    trainer = pairs_trainer("TRAINER.FINETUNE.PARTS", '["text"]', *SHORT)
    trainer.model.clip.visual = None
    assert next(iter(trainer.train_loader_x))["img"].ndim == 2
    assert train_one_step(trainer)["loss"] > 0
    assert trainer.test() < 10
    assert not any(name.startswith("clip.visual") for name in trainer.model.state_dict())


@pytest.mark.parametrize("freeze", [True, False])
def test_running_means_change_and_are_saved_unless_freeze_bn(pairs_trainer, freeze):
    trainer = pairs_trainer("TRAINER.FINETUNE.FREEZE_BN", freeze, *SHORT)
    norm = trainer.model.clip.visual.bn1
    before = norm.running_mean.clone()
    train_one_step(trainer)
    assert torch.equal(norm.running_mean, before) == freeze
    assert ("clip.visual.bn1.running_mean" in trainer.model.state_dict()) != freeze
    assert norm.weight.grad.abs().max() > 0


def train_one_step(trainer) -> dict[str, float]:
    """Train on the first batch; return its metrics."""
    trainer.set_model_mode("train")
    return trainer.forward_backward(next(iter(trainer.train_loader_x)))


def test_weight_decay_applies_to_matrices_alone_and_epsilon_comes_from_the_config(pairs_trainer):
    trainer = pairs_trainer("OPTIM.WEIGHT_DECAY", 0.2, "TRAINER.FINETUNE.ADAM_EPS", 1e-6)
    matrices, vectors = trainer._optims["clip"].param_groups
    assert (matrices["eps"], vectors["eps"]) == (1e-6, 1e-6)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)
    assert all(p.ndim > 1 for p in matrices["params"])
    assert any(p is trainer.model.clip.logit_scale for p in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(trainer.model.parameters()))


def test_the_logit_scale_is_clamped_to_100_after_a_step(pairs_trainer):
    trainer = pairs_trainer(*PROJECTIONS, *SHORT)
    trainer.model.clip.logit_scale.data.fill_(5.0)  # exp(5) is 148
    train_one_step(trainer)
    assert trainer.model.clip.logit_scale.exp().item() == pytest.approx(100)


def test_chunks_give_the_gradients_of_the_whole_batch_and_bfloat16_a_similar_loss(pairs_trainer):
    chunks, precision = ("TRAINER.FINETUNE.CHUNK", 7), ("TRAINER.FINETUNE.PREC", "bf16")
    whole, chunked, half = (pairs_trainer(*SHORT, *options) for options in ((), chunks, precision))
    losses = [train_one_step(trainer)["loss"] for trainer in (whole, chunked, half)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    gradients = ({name: p.grad for name, p in trainer.model.named_parameters()} for trainer in (whole, chunked))
    for (name, expected), actual in zip(next(gradients).items(), next(gradients).values(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7 + 1e-5 * expected.abs().max().item(), msg=name)


def test_the_drawn_caption_depends_on_seed_epoch_and_image_alone(pairs_trainer):
    trainer, other = pairs_trainer(), pairs_trainer("SEED", 2)
    drawn = [[trainer.caption(index) for index in range(64)] for trainer.epoch in range(4)]
    trainer.epoch = 0
    assert [trainer.caption(index) for index in reversed(range(64))] == drawn[0][::-1]
    assert drawn[0] != drawn[1]
    assert [other.caption(index) for index in range(64)] != drawn[0]
    for index, captions in enumerate(zip(*drawn, strict=True)):
        assert set(captions) <= set(trainer.dm.dataset.train_x[index].captions)
    assert len({text.split()[0] for text in drawn[0]}) > 3  # several wordings are drawn


@torch.no_grad()
def test_each_evaluation_uses_the_current_text_encoder(digits_trainer):
    """Class features are computed once in each evaluation, not once in a run. Here, their first half changes sign."""
    trainer, images = digits_trainer("CLIPFineTune"), torch.randn(2, 3, 32, 32)
    image_features = normalize(trainer.model.clip.visual(images))
    trainer.set_model_mode("eval")
    before = trainer.model_inference(images)
    trainer.set_model_mode("train")
    trainer.model.clip.text_projection.data[:, :32] *= -1
    trainer.set_model_mode("eval")
    half = trainer.class_features().clone()
    half[:, 32:] = 0
    change = 2 * trainer.model.clip.logit_scale.exp() * image_features @ half.t()
    torch.testing.assert_close(trainer.model_inference(images), before + change)


# ---- from random weights ----


@pytest.mark.parametrize("architecture", [tuple(ARCHITECTURE.values()), VIT], ids=["tiny", "ViT"])
def test_random_weights_have_the_standard_deviations_of_the_constructors(architecture):
    fresh, clip = openai.CLIP(*architecture), openai.CLIP(*architecture)
    for parameter in clip.parameters():
        parameter.data.fill_(7)
    reset_weights(clip)
    for (name, actual), expected in zip(clip.named_parameters(), fresh.parameters(), strict=True):
        assert (actual != 7).all(), name
        if actual.numel() > 500:
            assert abs(actual.std() - expected.std()) <= 0.25 * expected.std() + 1e-6, name
    assert clip.logit_scale.item() == pytest.approx(fresh.logit_scale.item())


# ---- parts ----


@pytest.mark.parametrize(
    ("parts", "trained", "frozen"),
    [
        (("image",), "visual.proj", "text_projection"),
        (("text",), "token_embedding.weight", "visual.proj"),
        (("projections",), "visual.proj", "visual.conv1.weight"),
        (("projections", "image"), "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"),
        (("lora", "projections"), "text_projection", "visual.conv1.weight"),
    ],
)
def test_the_chosen_parts_and_the_logit_scale_are_trained_and_saved_alone(parts, trained, frozen):
    clip = openai.CLIP(*VIT).requires_grad_(False)
    set_trainable(clip, parts, 2, 4.0)
    requires_grad = {name: parameter.requires_grad for name, parameter in clip.named_parameters()}
    assert requires_grad[trained]
    assert not requires_grad[frozen]
    assert requires_grad["logit_scale"]
    assert any(name.endswith(".up") for name in requires_grad) == ("lora" in parts)
    model = FineTunedCLIP(clip, "fp32", batch_norm=False)
    assert set(model.state_dict()) == {f"clip.{name}" for name, is_trained in requires_grad.items() if is_trained}


def test_captions_longer_than_the_context_length_are_truncated(pairs_trainer):
    trainer = pairs_trainer()
    for item in trainer.dm.dataset.train_x:
        item.captions = ("very " * 100 + str(item.label),)
    assert train_one_step(trainer)["loss"] > 0


def test_captions_with_equal_tokens_are_positives_of_each_other(pairs_trainer):
    losses = []
    for texts in (("two",), ("two", "Two", " two  "), ("two", "Three", " four  ")):
        trainer = pairs_trainer(*SHORT)
        for number, item in enumerate(trainer.dm.dataset.train_x):
            item.captions = ("one",) if number % 2 else (texts[number % len(texts)],)
        losses.append(train_one_step(trainer)["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_init_weights_without_any_trained_part_are_refused(pairs_trainer, tmp_path):
    lora = pairs_trainer("TRAINER.FINETUNE.PARTS", '["lora"]')
    lora.save_model(0, str(tmp_path))
    weights = tmp_path / "clip/model.pth.tar-1"
    with pytest.raises(UserError, match="has no weights of the parts in TRAINER.FINETUNE.PARTS"):
        pairs_trainer("TRAINER.FINETUNE.PARTS", '["projections"]', "MODEL.INIT_WEIGHTS", weights)
    both = pairs_trainer("TRAINER.FINETUNE.PARTS", '["lora","projections"]', "MODEL.INIT_WEIGHTS", weights)
    saved = lora.model.state_dict()
    assert all(torch.equal(both.model.state_dict()[name], value) for name, value in saved.items())
