"""CoCoOp against its definition, computed the plain way: 77 positions of every class's prompt for every image."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from tests.common import assert_same_tensors, plain_text_features, tensors
from trainers.cocoop import ConditionalCLIP
from vlm.clip.load import load
from vlm.text.encoder import TextEncoder

NAMES = ["cat", "English springer", "container_ship"]
IMAGES = 5


@pytest.fixture(scope="module")
def clip():
    return load("tiny")[0]


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
        texts = plain_text_features(clip, prompts, ends)
        rows.append(clip.logit_scale.exp() * feature @ F.normalize(texts, dim=-1).t())
    return torch.stack(rows)


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("values", [{}, {"N_CTX": 16}, {"CTX_INIT": "a_photo_of_a"}])
def test_logits_and_gradients_are_the_plain_ones(clip, image_features, values, memory):
    model = model_of(clip, memory, **values)
    parameters = dict(model.prompt_learner.named_parameters())
    assert sorted(parameters) == [
        "ctx",
        "meta_net.linear1.bias",
        "meta_net.linear1.weight",
        "meta_net.linear2.bias",
        "meta_net.linear2.weight",
    ]
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


def test_each_image_has_its_own_prompts(clip, image_features):
    model = model_of(clip)
    together = model(image_features)
    for i in range(IMAGES):
        torch.testing.assert_close(model(image_features[i : i + 1])[0], together[i])
    with torch.no_grad():
        contexts = model.prompt_learner(F.normalize(image_features, dim=-1))
    assert not torch.equal(contexts[0], contexts[1])


def test_the_hidden_layer_has_a_sixteenth_of_the_features_width(clip):
    hidden = model_of(clip).prompt_learner.meta_net.linear1
    assert (hidden.in_features, hidden.out_features) == (64, 4)


def test_a_run_trains_resumes_and_is_evaluated(run):
    few = ("DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.CHECKPOINT_FREQ", 1)
    few = (*few, "TRAINER.COCOOP.N_CTX", 2, "TRAINER.COCOOP.CTX_INIT", "", "OPTIM.MAX_EPOCH", 2)
    whole = run(*few, trainer="CoCoOp", out="whole")
    assert whole.code == 0, whole.error
    assert {"prompt_learner.ctx", "ctx"} & set(tensors(whole.checkpoint(2)))
    assert {"token_prefix", "token_suffix", "meta_net.linear2.bias"} <= set(tensors(whole.checkpoint(2)))

    stopped = run(*few, trainer="CoCoOp", out="stopped")
    for path in (stopped.checkpoint(2), stopped.folder / "result.json"):
        path.unlink()
    (stopped.checkpoint(1).parent / "checkpoint").write_text("model.pth.tar-1\n")
    again = run(*few, trainer="CoCoOp", out="stopped")
    assert "epoch [2/2]" in again.log
    assert "epoch [1/2]" not in again.log
    assert_same_tensors(again.checkpoint(2), whole.checkpoint(2))

    evaluated = run("--eval-only", "--model-dir", whole.folder, *few, trainer="CoCoOp", out="evaluated")
    assert evaluated.accuracy == whole.accuracy


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("N_CTX", 0, "TRAINER.COCOOP.N_CTX is 0"), ("PREC", "fp8", "TRAINER.COCOOP.PREC"), ("CTX_INIT", "_", "no words")],
)
def test_values_that_it_cannot_use(run, key, value, message):
    result = run(f"TRAINER.COCOOP.{key}", value, trainer="CoCoOp")
    assert result.code == 2
    assert message in result.error
