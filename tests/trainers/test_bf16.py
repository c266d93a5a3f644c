"""CLIP's weights in bfloat16: what is learned, and what is scored, has more bits."""

import pytest
import torch

from tests.trainers.test_coop import NAMES, node
from trainers.cocoop import ConditionalCLIP
from trainers.coop import CustomCLIP
from vlm import openai
from vlm.clip.load import load
from vlm.tiny.weights import load_tiny


def half(dtype):
    """The tiny CLIP as :func:`vlm.clip.load.load` makes it for a GPU."""
    clip = openai.build_model(load_tiny())
    for parameter in clip.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(dtype)
    return clip.requires_grad_(False)


@pytest.mark.parametrize("model", [CustomCLIP, ConditionalCLIP])
@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_the_context_is_fp32_and_so_are_the_scores(model, words):
    images = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for clip in (half(torch.bfloat16), load("tiny")[0]):
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
