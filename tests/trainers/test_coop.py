"""The prompt learner: where the context stands, what it starts from, and parity with the original."""

import json

import pytest
import torch
from yacs.config import CfgNode

from dassl.utils import set_random_seed
from tests.common import SHARED, needs_shared
from trainers.coop import CustomCLIP, PromptLearner
from vlm.load import load
from vlm.prompts import tokenize
from vlm.text_encoder import TextEncoder

NAMES = ["cat", "English springer", "container_ship"]


def node(**values) -> CfgNode:
    return CfgNode({"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end", **values})


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(load("tiny")[0])


@pytest.mark.parametrize(
    ("position", "text"), [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")]
)
@pytest.mark.parametrize("csc", [False, True])
def test_a_context_of_words_is_the_sentence(encoder, position, text, csc):
    learner = PromptLearner(NAMES, encoder, 4, "a_photo_of_a", csc, position)
    tokens = tokenize([text.format(name.replace("_", " ")) for name in NAMES])
    torch.testing.assert_close(learner()[learner.index], encoder.embed(tokens))
    torch.testing.assert_close(encoder(learner(), learner.layout), encoder.encode(tokens))
    assert learner.ctx.shape[:-1] == ((3, 4) if csc else (4,))


def test_the_number_of_context_tokens_is_that_of_the_words(encoder):
    learner = PromptLearner(NAMES, encoder, 16, "a photograph of somethings")
    assert learner.ctx.shape[0] == len(tokenize(["a photograph of somethings"])[0].nonzero()) - 2


def test_only_the_context_is_trained():
    model = CustomCLIP(NAMES, load("tiny")[0], node())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["prompt_learner.ctx"]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_every_context_token_gets_a_gradient(encoder, position):
    learner = PromptLearner(NAMES, encoder, 4, csc=True, position=position)
    encoder(learner(), learner.layout).square().sum().backward()
    assert (learner.ctx.grad.abs().sum(-1) > 0).all()


def test_class_words_of_a_checkpoint_are_not_taken_over(encoder):
    source, target = PromptLearner(NAMES, encoder, 4), PromptLearner(["a", "b", "c"], encoder, 4)
    own = target.token_suffix.clone()
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.ctx, source.ctx)
    assert torch.equal(target.token_suffix, own)


@pytest.fixture(scope="module")
def reference():
    folder = SHARED / "reference"
    tensors = torch.load(folder / "tiny_tensors.pt", weights_only=True)
    return tensors, json.loads((folder / "tiny_meta.json").read_text()), str(folder / "tiny_clip.pt")


@needs_shared
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize(
    ("key", "n_ctx", "words"), [("init4", 4, "a photo of a"), ("rand4", 4, ""), ("rand16", 16, "")]
)
def test_prompts_and_features_are_the_originals(reference, key, n_ctx, words, csc, position):
    tensors, meta, weights = reference
    clip, _ = load("tiny", weights)
    torch.manual_seed(1)
    values = node(N_CTX=16 if key == "rand16" else 4, CTX_INIT=words, CSC=csc, CLASS_TOKEN_POSITION=position)
    model = CustomCLIP(meta["classnames"], clip, values)
    expected = tensors[f"{key}_csc{csc}_{position}.prompts"]
    if expected.shape[-1] == 64:  # the others are stored in excerpts
        torch.testing.assert_close(model.prompt_learner()[model.prompt_learner.index], expected)
    expected = tensors[f"{key}_csc{csc}_{position}.text_features_raw"]
    features = model.text_encoder(model.prompt_learner(), model.prompt_learner.layout)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@needs_shared
@pytest.mark.parametrize("n_ctx", [4, 16])
def test_a_seeded_run_starts_from_the_originals_context(reference, n_ctx):
    tensors, meta, weights = reference
    set_random_seed(1)
    model = CustomCLIP(meta["classnames"], load("tiny", weights)[0], node(N_CTX=n_ctx))
    assert torch.equal(model.prompt_learner.ctx, tensors[f"fullpath_seed1_ctx{n_ctx}"])
