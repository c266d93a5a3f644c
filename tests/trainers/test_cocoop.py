"""CoCoOp against its equations, computed over 77 positions of every class's prompt for every image."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from tests.common import load_tensors
from trainers.cocoop import ConditionalCLIP
from vlm.clip.load import load_clip
from vlm.text.encoder import TextEncoder
from vlm.text.plain import encode_prompts

NAMES = ["cat", "English springer", "container_ship"]
IMAGES = 5


@pytest.fixture(scope="module")
def clip():
    """Return the tiny CLIP."""
    return load_clip("tiny")[0]


@pytest.fixture(scope="module")
def image_features(clip):
    """Return random image features (IMAGES, embed_dim)."""
    return torch.randn(IMAGES, clip.text_projection.shape[1], generator=torch.Generator().manual_seed(0))


def build_model(clip, memory: int = 1 << 30, **values) -> ConditionalCLIP:
    """Return a ConditionalCLIP with seed 1, ``memory`` bytes for activations and ``values`` of TRAINER.COCOOP."""
    torch.manual_seed(1)
    node = CfgNode({"N_CTX": 4, "CTX_INIT": "", "PREC": "fp32", **values})
    return ConditionalCLIP(NAMES, clip, node, TextEncoder(clip, memory))


def compute_reference_logits(model: ConditionalCLIP, clip, image_features: torch.Tensor) -> torch.Tensor:
    """Return logits (images, classes) by Zhou et al. 2022, equations 1 to 3, image by image."""
    learner, rows = model.prompt_learner, []
    prefix, suffix = (learner.state_dict()[key] for key in ("token_prefix", "token_suffix"))
    eot_positions = learner.index.eq(learner.index.max()).int().argmax(1)  # the end-of-text token has the last row
    for feature in F.normalize(image_features, dim=-1):
        context = learner.ctx + learner.meta_net(feature)
        prompts = torch.cat([prefix, context.expand(len(NAMES), -1, -1), suffix], dim=1)
        text_features = encode_prompts(clip, prompts, eot_positions)
        rows.append(clip.logit_scale.exp() * feature @ F.normalize(text_features, dim=-1).t())
    return torch.stack(rows)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("values", [{}, {"CTX_INIT": "a_photo_of_a"}])
def test_logits_and_gradients_are_those_of_the_equations(clip, image_features, values, memory):
    model = build_model(clip, memory, **values)
    parameters = dict(model.prompt_learner.named_parameters())
    assert {name: [*p.shape] for name, p in parameters.items() if p.ndim > 1} == {
        "ctx": [4, 128],
        "meta_net.linear1.weight": [4, 64],  # a sixteenth of the features' width
        "meta_net.linear2.weight": [128, 4],
    }
    labels = torch.arange(IMAGES) % len(NAMES)
    results = []
    for logits in (model(image_features), compute_reference_logits(model, clip, image_features)):
        model.zero_grad()
        F.cross_entropy(logits, labels).backward()
        results.append((logits.detach(), {name: p.grad.clone() for name, p in parameters.items()}))
    (actual, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=0)


def test_the_checkpoint_of_a_run_evaluates_to_the_same_accuracy(run):
    options = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1)
    options = (*options, "TRAINER.COCOOP.N_CTX", 2)
    trained = run(*options, trainer="CoCoOp")
    assert trained.code == 0, trained.error
    names = {"ctx", "token_prefix", "token_suffix", "meta_net.linear1.weight", "meta_net.linear2.bias"}
    assert names <= set(load_tensors(trained.checkpoint(1)))
    evaluated = run("--eval-only", "--model-dir", trained.folder, *options, trainer="CoCoOp", out="evaluated")
    assert evaluated.accuracy == trained.accuracy


def test_a_context_without_tokens_is_refused(run):
    result = run("TRAINER.COCOOP.N_CTX", 0, trainer="CoCoOp")
    assert result.code == 2
    assert "TRAINER.COCOOP.N_CTX is 0" in result.error
