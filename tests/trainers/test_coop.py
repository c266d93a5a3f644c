"""The prompt learner: position and initial value of the context, class tokens, precision."""

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


def make_node(**values) -> CfgNode:
    """Return a config node TRAINER.COOP with 4 context tokens and these ``values``."""
    return CfgNode({"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end", **values})


@pytest.fixture(scope="module")
def encoder():
    """Return the text encoder of the tiny CLIP."""
    return TextEncoder(load_clip("tiny")[0])


@pytest.mark.parametrize(
    ("position", "text"), [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")]
)
@pytest.mark.parametrize("csc", [False, True])
def test_a_context_of_words_gives_the_embeddings_of_the_sentence(encoder, position, text, csc):
    learner = PromptLearner(NAMES, encoder, 4, "a_photo_of_a", csc, position)
    tokens = tokenize([text.format(name.replace("_", " ")) for name in NAMES])
    torch.testing.assert_close(learner()[learner.index], encoder.embed(tokens))
    torch.testing.assert_close(encoder(learner(), learner.layout), encoder.encode(tokens))
    assert learner.ctx.shape[:-1] == ((3, 4) if csc else (4,))


@pytest.mark.parametrize(
    ("words", "text"),
    [("photo", "{} photo."), ("a photo of", "a {} photo of."), ("a photo of my big", "a photo {} of my big.")],
)
def test_a_name_in_the_middle_of_an_odd_number_of_context_tokens_has_the_larger_half_after_it(encoder, words, text):
    """As in CoOp's code, which rounds down the number of tokens before the name."""
    learner = PromptLearner(NAMES, encoder, 0, words, position="middle")
    tokens = tokenize([text.format(name.replace("_", " ")) for name in NAMES])
    torch.testing.assert_close(learner()[learner.index], encoder.embed(tokens))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_name_that_merges_with_the_full_stop_leaves_the_end_of_text_token_last(encoder, position):
    """Alone, the name has one token more than with the full stop after it."""
    name = "cat,.."
    assert count_tokens(name) == count_tokens(f"{name}.") + 1
    learner = PromptLearner([name, "dog"], encoder, 4, position=position)
    ends = learner.index[torch.arange(2), learner.lengths - 1]
    torch.testing.assert_close(learner()[ends], encoder.embed(torch.tensor([EOT_TOKEN, EOT_TOKEN])))


@torch.no_grad()
def test_each_evaluation_uses_the_current_context(digits_trainer):
    """Class features are computed once in each evaluation, not once in a run."""
    trainer, features = digits_trainer("CoOp", "TRAINER.COOP.N_CTX", 1), torch.randn(5, 64)
    logits = []
    for value in (0.0, 0.1):
        trainer.set_model_mode("train")
        trainer.model.prompt_learner.ctx.data[:, :64] = value
        trainer.set_model_mode("eval")
        logits.append(trainer.model_inference(features))
        torch.testing.assert_close(logits[-1], trainer.model(features))
    assert not torch.allclose(*logits)


def test_class_specific_contexts_are_not_loaded_for_other_classes(encoder):
    source = PromptLearner(NAMES, encoder, 4, csc=True)
    PromptLearner(NAMES, encoder, 4, csc=True).load_state_dict(source.state_dict())
    with pytest.raises(RuntimeError, match="class-specific"):
        PromptLearner([*NAMES[1:], "dog"], encoder, 4, csc=True).load_state_dict(source.state_dict())
    shorter = source.state_dict()  # like a Chinese-CLIP's, whose prompts are as long as the longest one
    shorter["token_suffix"] = shorter["token_suffix"][:, :-3]
    with pytest.raises(RuntimeError, match="class-specific"):
        source.load_state_dict(shorter)


def load_half_precision_clip(dtype):
    """Return the tiny CLIP in half precision ``dtype``, as ``vlm.clip.load.load_clip`` returns it for a GPU."""
    clip = openai.build_model(load_tiny())
    for parameter in clip.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(dtype)
    return clip.requires_grad_(False)


@pytest.mark.parametrize("model", [CustomCLIP, ConditionalCLIP])
@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_context_and_logits_are_fp32_with_a_clip_in_bfloat16(model, words):
    images = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for clip in (load_half_precision_clip(torch.bfloat16), load_clip("tiny")[0]):
        torch.manual_seed(1)
        custom_clip = model(NAMES, clip, make_node(CTX_INIT=words))
        outputs.append(custom_clip(images))
        outputs[-1].logsumexp(1).sum().backward()
        ctx = custom_clip.prompt_learner.ctx
        assert ctx.dtype == ctx.grad.dtype == outputs[-1].dtype == torch.float32
        assert (ctx.grad.abs().sum(-1) > 0).all()
    assert (outputs[0] - outputs[1]).abs().max() < 0.05 * outputs[1].abs().max()
    assert not torch.equal(*outputs)


def test_the_context_is_fp16_with_a_clip_in_fp16_as_in_coops_code():
    clip = load_half_precision_clip(torch.float16)
    assert CustomCLIP(NAMES, clip, make_node()).prompt_learner.ctx.dtype == torch.float16
