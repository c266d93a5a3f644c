"""CoCoOp against its definition, computed the plain way: 77 positions of every class's prompt for every image."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from tests.common import tensors
from trainers.cocoop import ConditionalCLIP
from vlm.clip.load import load_clip
from vlm.text.encoder import TextEncoder
from vlm.text.plain import encode_prompts

NAMES = ["cat", "English springer", "container_ship"]
IMAGES = 5


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")[0]


@pytest.fixture(scope="module")
def image_features(clip):
    return torch.randn(IMAGES, clip.text_projection.shape[1], generator=torch.Generator().manual_seed(0))


def model_of(clip, memory: int = 1 << 30, **values) -> ConditionalCLIP:
    torch.manual_seed(1)
    node = CfgNode({"N_CTX": 4, "CTX_INIT": "", "PREC": "fp32", **values})
    return ConditionalCLIP(NAMES, clip, node, TextEncoder(clip, memory))


def plain_logits(model: ConditionalCLIP, clip, image_features: torch.Tensor) -> torch.Tensor:
    """Zhou et al. 2022, equations 1 to 3, image by image."""
    learner, rows = model.prompt_learner, []
    prefix, suffix = (learner.state_dict()[f"token_{part}"] for part in ("prefix", "suffix"))
    ends = learner.index.eq(learner.index.max()).int().argmax(1)  # the end-of-text token has the last row
    for feature in F.normalize(image_features, dim=-1):
        context = learner.ctx + learner.meta_net(feature)
        prompts = torch.cat(
            [prefix, context.expand(len(NAMES), -1, -1), suffix], dim=1
        )  # start, context, class name and the rest
        texts = encode_prompts(clip, prompts, ends)
        rows.append(clip.logit_scale.exp() * feature @ F.normalize(texts, dim=-1).t())
    return torch.stack(rows)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("values", [{}, {"CTX_INIT": "a_photo_of_a"}])
def test_logits_and_gradients_are_the_plain_ones(clip, image_features, values, memory):
    model = model_of(clip, memory, **values)
    parameters = dict(model.prompt_learner.named_parameters())
    assert {name: [*p.shape] for name, p in parameters.items() if p.ndim > 1} == {
        "ctx": [4, 128],
        "meta_net.linear1.weight": [4, 64],  # a sixteenth of the features' width
        "meta_net.linear2.weight": [128, 4],
    }
    labels = torch.arange(IMAGES) % len(NAMES)
    results = []
    for logits in (model(image_features), plain_logits(model, clip, image_features)):
        model.zero_grad()
        F.cross_entropy(logits, labels).backward()
        results.append((logits.detach(), {name: p.grad.clone() for name, p in parameters.items()}))
    (ours, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    for name, gradient in expected_gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=0)


def test_a_run_and_its_evaluation(run):
    few = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1)
    few = (*few, "TRAINER.COCOOP.N_CTX", 2)
    trained = run(*few, trainer="CoCoOp")
    assert trained.code == 0, trained.error
    names = {"ctx", "token_prefix", "token_suffix", "meta_net.linear1.weight", "meta_net.linear2.bias"}
    assert names <= set(tensors(trained.checkpoint(1)))
    evaluated = run("--eval-only", "--model-dir", trained.folder, *few, trainer="CoCoOp", out="evaluated")
    assert evaluated.accuracy == trained.accuracy


def test_a_context_that_cannot_be_is_refused(run):
    result = run("TRAINER.COCOOP.N_CTX", 0, trainer="CoCoOp")
    assert result.code == 2
    assert "TRAINER.COCOOP.N_CTX is 0" in result.error
