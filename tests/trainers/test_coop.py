"""The prompt learner: where the context stands, and what it starts from."""

import pytest
import torch
from yacs.config import CfgNode

from trainers.cocoop import ConditionalCLIP
from trainers.coop import CustomCLIP, PromptLearner
from vlm import openai
from vlm.clip.load import load_clip
from vlm.text.encoder import TextEncoder
from vlm.text.tokenizer import EOT_TOKEN, count_tokens, tokenize
from vlm.tiny.weights import load_tiny

NAMES = ["cat", "English springer", "container_ship"]


def node(**values) -> CfgNode:
    return CfgNode({"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end", **values})


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(load_clip("tiny")[0])


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


@pytest.mark.parametrize(
    ("words", "text"),
    [("photo", "{} photo."), ("a photo of", "a {} photo of."), ("a photo of my big", "a photo {} of my big.")],
)
def test_in_the_middle_of_an_odd_number_of_tokens_the_larger_half_follows(encoder, words, text):
    """As in the original, which rounds down what comes before the name."""
    learner = PromptLearner(NAMES, encoder, 0, words, position="middle")
    tokens = tokenize([text.format(name.replace("_", " ")) for name in NAMES])
    torch.testing.assert_close(learner()[learner.index], encoder.embed(tokens))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_name_whose_last_marks_are_one_token_with_the_full_stop(encoder, position):
    """It must not take the end of the text with it."""
    name = "cat,.."
    assert count_tokens(name) == count_tokens(f"{name}.") + 1
    learner = PromptLearner([name, "dog"], encoder, 4, position=position)
    ends = learner.index[torch.arange(2), learner.lengths - 1]
    torch.testing.assert_close(learner()[ends], encoder.embed(torch.tensor([EOT_TOKEN, EOT_TOKEN])))


@torch.no_grad()
def test_each_evaluation_is_of_the_context_as_it_is(digits_trainer):
    """Class features are computed once an evaluation, not once a run."""
    trainer, features = digits_trainer("CoOp", "TRAINER.COOP.N_CTX", 1), torch.randn(5, 64)
    found = []
    for value in (0.0, 0.1):
        trainer.set_model_mode("train")
        trainer.model.prompt_learner.ctx.data[:, :64] = value
        trainer.set_model_mode("eval")
        found.append(trainer.model_inference(features))
        torch.testing.assert_close(found[-1], trainer.model(features))
    assert not torch.allclose(*found)


def test_contexts_of_classes_go_with_these_classes_alone(encoder):
    source = PromptLearner(NAMES, encoder, 4, csc=True)
    PromptLearner(NAMES, encoder, 4, csc=True).load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="class-specific"):
        PromptLearner([*NAMES[1:], "dog"], encoder, 4, csc=True).load_state_dict(source.state_dict())
    shorter = source.state_dict()  # as Chinese-CLIP has it, whose prompts are as long as the longest one
    shorter["token_suffix"] = shorter["token_suffix"][:, :-3]
    with pytest.raises(RuntimeError, match="class-specific"):
        source.load_state_dict(shorter)


def half(dtype):
    """The tiny CLIP as :func:`vlm.clip.load.load_clip` makes it for a GPU."""
    clip = openai.build_model(load_tiny())
    for parameter in clip.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(dtype)
    return clip.requires_grad_(False)


@pytest.mark.parametrize("model", [CustomCLIP, ConditionalCLIP])
@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_of_a_clip_in_bfloat16_the_context_is_fp32_and_so_are_the_scores(model, words):
    images = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for clip in (half(torch.bfloat16), load_clip("tiny")[0]):
        torch.manual_seed(1)
        net = model(NAMES, clip, node(CTX_INIT=words))
        outputs.append(net(images))
        outputs[-1].logsumexp(1).sum().backward()
        ctx = net.prompt_learner.ctx
        assert ctx.dtype == ctx.grad.dtype == outputs[-1].dtype == torch.float32
        assert (ctx.grad.abs().sum(-1) > 0).all()
    assert (outputs[0] - outputs[1]).abs().max() < 0.05 * outputs[1].abs().max()
    assert not torch.equal(*outputs)


def test_a_context_in_fp16_is_the_originals():
    assert CustomCLIP(NAMES, half(torch.float16), node()).prompt_learner.ctx.dtype == torch.float16
