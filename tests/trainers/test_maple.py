"""MaPLe against its formulas over 77 tokens of every prompt, and whole runs of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from inference.export import export_classifier
from inference.trained_run import load_trainer
from tests import plain_prompts
from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from tests.vlm import foreign_models
from vlm.clip.load import load_cached_clip
from vlm.images.prompted import PromptedImageEncoder, get_width_and_depth
from vlm.openai import ModifiedResNet

CONFIG = ("--config-file", REPOSITORY / "configs/trainers/MaPLe/tiny.yaml")
SHORT = (*CONFIG, "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)


def draw_batches(count: int, seed: int = 0):
    """Return ``count`` batches of 5 images of noise with labels of the digits, as the data loader gives them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "img": torch.randn(5, 3, 64, 64, generator=generator),
            "label": torch.randint(10, (5,), generator=generator),
            "domain": torch.zeros(5, dtype=torch.long),
        }
        for _ in range(count)
    ]


def assert_steps_equal(trainer, compute_loss, steps: int = 5) -> None:
    """Assert that steps of ``trainer`` have losses and gradients of ``compute_loss(parameters, image, label)``.

    The parameters, by name, begin as the trainer's and take plain steps of gradient descent with momentum.
    """
    learner = trainer.model.prompt_learner
    with torch.no_grad():
        for parameter in learner.parameters():  # visible prompts, of different values in all layers
            parameter.add_(0.3 * torch.randn(parameter.shape))
    parameters = {name: copy.deepcopy(parameter) for name, parameter in learner.named_parameters()}
    node = trainer.cfg.OPTIM
    optim = torch.optim.SGD(parameters.values(), 0.02, node.MOMENTUM, weight_decay=node.WEIGHT_DECAY)
    trainer.optim.param_groups[0]["lr"], trainer.num_batches = 0.02, -1  # no step of the schedule
    trainer.set_model_mode("train")
    for trainer.batch_idx, batch in enumerate(draw_batches(steps)):
        loss = compute_loss(parameters, batch["img"], batch["label"])
        optim.zero_grad()
        loss.backward()
        assert trainer.forward_backward(batch)["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in learner.named_parameters():
            expected = parameters[name].grad
            assert expected.abs().max() > 0, name
            atol = 1e-5 * expected.abs().max().item()
            torch.testing.assert_close(parameter.grad, expected, atol=atol, rtol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
        optim.step()


def encode_texts(trainer, parameters) -> torch.Tensor:
    """Return text features (classes, embed_dim) over 77 tokens under the prompts in ``parameters``."""
    clip, learner = trainer.backbone.clip, trainer.model.prompt_learner
    tokens = clip.token_embedding(trainer.model.text_encoder.tokenize([f"a photo of a {name}." for name in NAMES]))
    prompts = torch.cat([tokens[:, :1], parameters["ctx"].expand(10, -1, -1), tokens[:, 1 + len(learner.ctx) :]], 1)
    deep = [value for name, value in parameters.items() if name.startswith("compound_prompts_text")]
    return plain_prompts.encode_texts(clip, prompts, learner.lengths - 1, deep)


NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize("chunk", [0, 2])
def test_five_steps_have_the_losses_and_gradients_of_the_formulas(small_trainer, chunk):
    options = ("TRAINER.MAPLE.PROMPT_DEPTH", 3, "TRAINER.MAPLE.CHUNK", chunk, "MODEL.BACKBONE.ACTIVATIONS_GB", 0.001)
    trainer = small_trainer("MaPLe", *options)
    clip = trainer.backbone.clip
    layers = len(trainer.model.prompt_learner.visual_prompts())
    assert layers == (1 if isinstance(clip.visual, ModifiedResNet) else 3)

    def compute_loss(p, image, label):
        ctx = [p["ctx"], p["compound_prompts_text.0"], p["compound_prompts_text.1"]]
        names = ["proj", "compound_prompt_projections.0", "compound_prompt_projections.1"]
        visual = [ctx[i] @ p[f"{names[i]}.weight"].t() + p[f"{names[i]}.bias"] for i in range(layers)]
        f, g = plain_prompts.encode_images(clip, image, visual), encode_texts(trainer, p)
        return F.cross_entropy(plain_prompts.logits(clip, f, g), label)

    assert_steps_equal(trainer, compute_loss)


def test_prompts_begin_as_in_the_authors_code(small_trainer):
    trainer = small_trainer("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", 3)
    learner, clip = trainer.model.prompt_learner, trainer.backbone.clip
    words = clip.token_embedding(trainer.model.text_encoder.tokenize(["a photo of a"]))[0, 1:5]
    assert torch.equal(learner.ctx, words[:2])
    assert torch.equal(learner.state_dict()["token_suffix"][0, :2], words[2:])
    deep = torch.stack([*learner.compound_prompts_text])
    assert deep.shape == (2, 2, 128)
    assert deep.std().item() == pytest.approx(0.02, rel=0.1)
    if not isinstance(clip.visual, ModifiedResNet):
        first, second = learner.compound_prompt_projections
        assert torch.equal(first.weight, second.weight)
        assert not torch.equal(first.weight, learner.proj.weight)


def test_images_in_chunks_have_the_same_features_and_gradients(small_trainer):
    trainer = small_trainer("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", 3)
    (batch,), results = draw_batches(1), []
    for trainer.model.chunk in (0, 1, 3):
        trainer.model.prompt_learner.zero_grad()
        features = trainer.model.encode_images(batch["img"])
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        results.append((features.detach(), trainer.model.prompt_learner.proj.weight.grad.clone()))
    for features, gradient in results[1:]:
        torch.testing.assert_close(features, results[0][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-5 * gradient.abs().max().item(), rtol=0)
    assert results[0][1].abs().max() > 0


def test_an_image_encoder_without_prompts_is_the_frozen_one(small_weights):
    visual = load_cached_clip("", str(small_weights), "fp32", "cpu")[0].visual
    image = draw_batches(1)[0]["img"]
    width, _ = get_width_and_depth(visual)
    none = PromptedImageEncoder(visual, lambda: [torch.zeros(0, width)])
    torch.testing.assert_close(none(image), visual(image), atol=1e-5, rtol=1e-5)
    two = PromptedImageEncoder(visual, lambda: [torch.ones(2, width)])
    assert not torch.allclose(two(image), visual(image), atol=1e-3)


def test_chunks_save_memory(small_trainer):
    trainer = small_trainer("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", 3)
    if isinstance(trainer.backbone.clip.visual, ModifiedResNet):
        pytest.skip("its convolutions store nothing for a backward pass")
    images, counts = torch.cat([batch["img"] for batch in draw_batches(4)]), []
    for trainer.model.chunk in (0, 2):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            trainer.model.encode_images(images)
        counts.append(sum(sizes))
    assert counts[1] < counts[0] / 3


# ---- whole runs ----


def test_a_resumed_run_ends_like_an_uninterrupted_one_and_its_model_is_evaluated_the_same(run, predict_digits):
    shared = copy.deepcopy(load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict())
    whole = run(*SHORT, trainer="MaPLe")
    assert whole.code == 0, whole.error
    assert "Note: the image encoder is a ResNet" in whole.log
    assert set(load_tensors(whole.checkpoint(2))) == {
        *("ctx", "token_prefix", "token_suffix", "compound_prompts_text.0", "proj.weight", "proj.bias")
    }
    evaluated = run("--eval-only", "--model-dir", whole.folder, *SHORT, trainer="MaPLe", out="evaluated")
    assert evaluated.code == 0, evaluated.error
    assert evaluated.accuracy == whole.accuracy
    assert predict_digits(whole) == whole.accuracy
    stopped = run(*SHORT, trainer="MaPLe", out="stopped")
    (stopped.folder / "prompt_learner/checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
    stopped.checkpoint(2).unlink()
    resumed = run(*SHORT, trainer="MaPLe", out="stopped")
    assert resumed.code == 0, resumed.error
    assert_same_tensors(resumed.checkpoint(2), whole.checkpoint(2))
    after = load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in shared.items())


@pytest.mark.parametrize("small_weights", ["ViT"], indirect=True)
def test_the_exported_onnx_file_has_the_prompts_in_its_image_encoder(run, small_weights, tmp_path):
    """The export itself compares its logits with those of the run."""
    options = ("MODEL.BACKBONE.WEIGHTS", small_weights, "INPUT.SIZE", (64, 64), "TRAINER.MAPLE.PROMPT_DEPTH", 3)
    trained = run(*SHORT, *options, "TEST.NO_TEST", True, trainer="MaPLe")
    assert trained.code == 0, trained.error
    export_classifier(load_trainer(trained.folder, cuda=False), tmp_path / "exported")
    assert (tmp_path / "exported/classifier.onnx").stat().st_size > 1000


@pytest.mark.parametrize("write_clip", [foreign_models.hugging_face_clip, foreign_models.chinese_clip])
def test_a_clip_of_another_library_is_refused_and_coop_named(run, tmp_path, write_clip):
    pytest.importorskip("transformers")
    name = f"hf:{write_clip(tmp_path / 'clip')}"
    result = run(*SHORT, "MODEL.BACKBONE.NAME", name, trainer="MaPLe")
    assert result.code == 2
    assert "MaPLe has prompts inside OpenAI's architectures" in result.error
    assert "CoOp" in result.error


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("TRAINER.MAPLE.N_CTX", 0), "TRAINER.MAPLE.N_CTX is 0"),
        (("TRAINER.MAPLE.N_CTX", 5), 'CTX_INIT "a photo of a" has 4 tokens, below N_CTX 5'),
        (("TRAINER.MAPLE.N_CTX", 80, "TRAINER.MAPLE.CTX_INIT", ""), "tokens"),
        (("TRAINER.MAPLE.PROMPT_DEPTH", 3), "PROMPT_DEPTH is 3; it must be at most 2, the layers of tiny"),
        (("TRAINER.MAPLE.PROMPT_DEPTH", 0), "TRAINER.MAPLE.PROMPT_DEPTH is 0"),
        (("TRAINER.MAPLE.CHUNK", -1), "TRAINER.MAPLE.CHUNK is -1"),
        (("TRAINER.MAPLE.PREC", "half"), "TRAINER.MAPLE.PREC"),
        (("TRAINER.MAPLE.CTX_INIT", "a {}"), "has braces"),
    ],
)
def test_values_that_cannot_be_used_are_refused(run, options, problem):
    result = run(*SHORT, *options, trainer="MaPLe")
    assert result.code == 2
    assert result.error.count("\n") == 1
    assert problem in result.error
