"""CLIPFineTune's model and steps: what learns, how, and from which weights."""

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


def test_where_only_the_text_tower_learns_the_batches_hold_features(trainer_of):
    trainer = trainer_of("TRAINER.FINETUNE.PARTS", '["text"]', *SHORT)
    trainer.model.clip.visual = None  # nobody asks for it
    assert next(iter(trainer.train_loader_x))["img"].ndim == 2
    assert step(trainer)["loss"] > 0
    assert trainer.test() < 10
    assert not any(name.startswith("clip.visual") for name in trainer.model.state_dict())


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_normalisation_goes_by_its_means_or_learns(trainer_of, freeze):
    trainer = trainer_of("TRAINER.FINETUNE.FREEZE_BN", freeze, *SHORT)
    norm = trainer.model.clip.visual.bn1
    before = norm.running_mean.clone()
    step(trainer)
    assert torch.equal(norm.running_mean, before) == freeze
    assert ("clip.visual.bn1.running_mean" in trainer.model.state_dict()) != freeze
    assert norm.weight.grad.abs().max() > 0


def step(trainer) -> dict[str, float]:
    trainer.set_model_mode("train")
    return trainer.forward_backward(next(iter(trainer.train_loader_x)))


def test_matrices_decay_and_nothing_else_does_and_the_epsilon_is_the_configs(trainer_of):
    trainer = trainer_of("OPTIM.WEIGHT_DECAY", 0.2, "TRAINER.FINETUNE.ADAM_EPS", 1e-6)
    decayed, others = trainer._optims["clip"].param_groups
    assert (decayed["eps"], others["eps"]) == (1e-6, 1e-6)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert any(p is trainer.model.clip.logit_scale for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(trainer.model.parameters()))


def test_the_logit_scale_is_clamped(trainer_of):
    trainer = trainer_of(*PROJECTIONS, *SHORT)
    trainer.model.clip.logit_scale.data.fill_(5.0)  # exp(5) is 148
    step(trainer)
    assert trainer.model.clip.logit_scale.exp().item() == pytest.approx(100)


def test_chunks_give_the_step_of_the_whole_batch_and_bfloat16_about_that(trainer_of):
    chunks, precision = ("TRAINER.FINETUNE.CHUNK", 7), ("TRAINER.FINETUNE.PREC", "bf16")
    whole, chunked, half = (trainer_of(*SHORT, *options) for options in ((), chunks, precision))
    losses = [step(trainer)["loss"] for trainer in (whole, chunked, half)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] != losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    gradients = ({name: p.grad for name, p in trainer.model.named_parameters()} for trainer in (whole, chunked))
    for (name, expected), ours in zip(next(gradients).items(), next(gradients).values(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7 + 1e-5 * expected.abs().max().item(), msg=name)


def test_captions_are_drawn_by_seed_epoch_and_image(trainer_of):
    trainer, other = trainer_of(), trainer_of("SEED", 2)
    drawn = [[trainer.caption(index) for index in range(64)] for trainer.epoch in range(4)]
    trainer.epoch = 0
    assert [trainer.caption(index) for index in reversed(range(64))] == drawn[0][::-1]
    assert drawn[0] != drawn[1]
    assert [other.caption(index) for index in range(64)] != drawn[0]
    for index, said in enumerate(zip(*drawn, strict=True)):
        assert set(said) <= set(trainer.dm.dataset.train_x[index].captions)
    assert len({text.split()[0] for text in drawn[0]}) > 3  # of all wordings


@torch.no_grad()
def test_each_evaluation_is_of_the_text_tower_as_it_is(digits_trainer):
    """Class features are computed once an evaluation, not once a run. Here, their first half is turned round."""
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
def test_random_weights_are_drawn_as_the_constructor_draws_them(architecture):
    fresh, clip = openai.CLIP(*architecture), openai.CLIP(*architecture)
    for parameter in clip.parameters():
        parameter.data.fill_(7)
    reset_weights(clip)
    for (name, own), expected in zip(clip.named_parameters(), fresh.parameters(), strict=True):
        assert (own != 7).all(), name
        if own.numel() > 500:
            assert abs(own.std() - expected.std()) <= 0.25 * expected.std() + 1e-6, name
    assert clip.logit_scale.item() == pytest.approx(fresh.logit_scale.item())


# ---- parts ----


@pytest.mark.parametrize(
    ("parts", "learn", "still"),
    [
        (("image",), "visual.proj", "text_projection"),
        (("text",), "token_embedding.weight", "visual.proj"),
        (("projections",), "visual.proj", "visual.conv1.weight"),
        (("projections", "image"), "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"),
        (("lora", "projections"), "text_projection", "visual.conv1.weight"),
    ],
)
def test_parts(parts, learn, still):
    clip = openai.CLIP(*VIT).requires_grad_(False)
    set_trainable(clip, parts, 2, 4.0)
    learning = {name: parameter.requires_grad for name, parameter in clip.named_parameters()}
    assert learning[learn]
    assert not learning[still]
    assert learning["logit_scale"]
    assert any(name.endswith(".up") for name in learning) == ("lora" in parts)
    model = FineTunedCLIP(clip, batch_norm=False)
    assert set(model.state_dict()) == {f"clip.{name}" for name, learns in learning.items() if learns}


def test_long_captions_are_cut(trainer_of):
    trainer = trainer_of()
    for item in trainer.dm.dataset.train_x:
        item.captions = ("very " * 100 + str(item.label),)
    assert step(trainer)["loss"] > 0


def test_a_start_from_weights_that_have_nothing_of_what_learns(trainer_of, tmp_path):
    lora = trainer_of("TRAINER.FINETUNE.PARTS", '["lora"]')
    lora.save_model(0, str(tmp_path))
    weights = tmp_path / "clip/model.pth.tar-1"
    with pytest.raises(UserError, match="has nothing of what TRAINER.FINETUNE.PARTS"):
        trainer_of("TRAINER.FINETUNE.PARTS", '["projections"]', "MODEL.INIT_WEIGHTS", weights)
    both = trainer_of("TRAINER.FINETUNE.PARTS", '["lora","projections"]', "MODEL.INIT_WEIGHTS", weights)
    learned = lora.model.state_dict()
    assert all(torch.equal(both.model.state_dict()[name], value) for name, value in learned.items())
