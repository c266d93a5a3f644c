"""PromptSRC against its formulas over 77 tokens of every prompt, and whole runs of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dassl.utils import UserError
from tests import plain_prompts
from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from tests.trainers.test_maple import NAMES, assert_steps_equal, encode_texts
from trainers.promptsrc import PromptSRC
from vlm.openai import ModifiedResNet
from vlm.text.templates import IMAGENET_TEMPLATES

CONFIG = ("--config-file", REPOSITORY / "configs/trainers/PromptSRC/tiny.yaml")
SHORT = (*CONFIG, "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
GAUSSIAN = ("TRAINER.PROMPTSRC.GPA_MEAN", 2, "TRAINER.PROMPTSRC.GPA_STD", 1.5)
DEPTHS = ("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 3)


@pytest.mark.parametrize("chunk", [0, 2])
def test_five_steps_have_the_losses_and_gradients_of_the_formulas(small_trainer, chunk):
    trainer = small_trainer("PromptSRC", *DEPTHS, "TRAINER.PROMPTSRC.CHUNK", chunk, "OPTIM.MAX_EPOCH", 2)
    trainer.before_train()
    clip = trainer.backbone.clip
    layers = len(trainer.model.prompt_learner.visual_prompts())
    assert layers == (1 if isinstance(clip.visual, ModifiedResNet) else 3)
    texts = [[template.replace("{}", name) for name in NAMES] for template in IMAGENET_TEMPLATES[:60]]
    with torch.no_grad():
        tokens = [trainer.model.text_encoder.tokenize(each) for each in texts]
        means = sum(clip.encode_text(each) for each in tokens) / 60

    def unit(features):
        return features / features.norm(dim=-1, keepdim=True)

    def compute_loss(p, image, label):
        visual = [p[f"compound_prompts_vision.{i}"] for i in range(layers)]
        f_p, g_p = plain_prompts.encode_images(clip, image, visual), encode_texts(trainer, p)
        with torch.no_grad():
            f = clip.encode_image(image)
        logits, frozen = plain_prompts.logits(clip, f_p, g_p), plain_prompts.logits(clip, f, means)
        q = frozen.softmax(1)
        kl = (q * (q.log() - logits.log_softmax(1))).mean()
        text, image = (unit(g_p) - unit(means)).abs().mean(), (unit(f_p) - unit(f)).abs().mean()
        return F.cross_entropy(logits, label) + 25 * text + 10 * image + kl

    assert_steps_equal(trainer, compute_loss)


def test_the_prompts_after_training_are_the_gaussian_mean_over_epochs(run, monkeypatch):
    prompts, after_epoch = [], PromptSRC.after_epoch

    def record_prompts(trainer):
        prompts.append({name: p.detach().clone() for name, p in trainer.model.prompt_learner.named_parameters()})
        after_epoch(trainer)

    monkeypatch.setattr(PromptSRC, "after_epoch", record_prompts)
    result = run(*SHORT, *GAUSSIAN, trainer="PromptSRC")
    assert result.code == 0, result.error
    weights = np.exp(-0.5 * ((np.arange(1, 4) - 2) / 1.5) ** 2)
    weights /= weights.sum()
    second, last = load_tensors(result.checkpoint(2)), load_tensors(result.checkpoint(3))
    for name in ("ctx", "compound_prompts_text.0", "compound_prompts_vision.0"):
        assert torch.equal(second[name], prompts[1][name])
        mean = sum(weight * each[name].double() for weight, each in zip(weights, prompts, strict=True))
        torch.testing.assert_close(last[name].double(), mean, atol=1e-7, rtol=1e-6)
        assert (mean - prompts[2][name]).abs().max() > 1e-4


def test_a_resumed_run_ends_like_an_uninterrupted_one_and_its_model_is_evaluated_the_same(run, predict_digits):
    whole = run(*SHORT, *GAUSSIAN, trainer="PromptSRC")
    assert whole.code == 0, whole.error
    assert set(load_tensors(whole.checkpoint(3))) == {
        *("ctx", "token_prefix", "token_suffix", "compound_prompts_text.0", "compound_prompts_vision.0")
    }
    evaluated = run("--eval-only", "--model-dir", whole.folder, *SHORT, trainer="PromptSRC", out="evaluated")
    assert evaluated.code == 0, evaluated.error
    assert evaluated.accuracy == whole.accuracy
    assert predict_digits(whole) == whole.accuracy
    stopped = run(*SHORT, *GAUSSIAN, trainer="PromptSRC", out="stopped")
    (stopped.folder / "prompt_learner/checkpoint").write_text("model.pth.tar-2\n", encoding="utf-8")
    stopped.checkpoint(3).unlink()
    resumed = run(*SHORT, *GAUSSIAN, trainer="PromptSRC", out="stopped")
    assert resumed.code == 0, resumed.error
    assert_same_tensors(resumed.checkpoint(3), whole.checkpoint(3))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("N_CTX_TEXT", 0), "TRAINER.PROMPTSRC.N_CTX_TEXT is 0"),
        (("N_CTX_VISION", 0), "TRAINER.PROMPTSRC.N_CTX_VISION is 0"),
        (("PROMPT_DEPTH_TEXT", 3), "PROMPT_DEPTH_TEXT is 3; it must be at most 2, the layers of tiny"),
        (("PROMPT_DEPTH_VISION", 0), "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION is 0"),
        (("GPA_STD", 0.0), "TRAINER.PROMPTSRC.GPA_STD is 0.0"),
    ],
)
def test_values_that_cannot_be_used_are_refused(run, options, problem):
    key, value = options
    result = run(*SHORT, f"TRAINER.PROMPTSRC.{key}", value, trainer="PromptSRC")
    assert result.code == 2
    assert result.error.count("\n") == 1
    assert problem in result.error


def test_depths_beyond_the_layers_of_an_image_encoder_are_refused(small_trainer):
    """Only where it has several: a ResNet has prompts in one layer whatever the depth."""
    options = (*DEPTHS, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 4)
    clip = small_trainer("PromptSRC", *DEPTHS).backbone.clip
    if isinstance(clip.visual, ModifiedResNet):
        assert len(small_trainer("PromptSRC", *options).model.prompt_learner.visual_prompts()) == 1
    else:
        with pytest.raises(UserError, match="PROMPT_DEPTH_VISION is 4; it must be at most 3"):
            small_trainer("PromptSRC", *options)
