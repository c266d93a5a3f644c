"""The text encoder against openai-clip's own, which computes all 77 positions."""

import pytest
import torch

from vlm.load import load
from vlm.openai import CLIP
from vlm.prompts import tokenize
from vlm.text_encoder import TextEncoder

TEXTS = ["seven", "a photo of a seven.", "an extremely long sentence about " + "the number seven " * 15]


@pytest.fixture(scope="module")
def wide():
    """Random weights, four heads, three layers."""
    torch.manual_seed(0)
    return CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 49408, 256, 4, 3).eval()


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:2]])
def test_features_are_openais(wide, texts):
    tokens = tokenize(texts)
    with torch.no_grad():
        torch.testing.assert_close(TextEncoder(wide).encode(tokens), wide.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_features_of_the_tiny_clip_are_openais():
    clip, _ = load("tiny")
    tokens = tokenize(TEXTS)
    torch.testing.assert_close(TextEncoder(clip).encode(tokens), clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_gradients_of_the_prompt_are_openais(wide):
    tokens = tokenize(TEXTS)
    encoder = TextEncoder(wide)
    ours = encoder.embed(tokens).detach().requires_grad_()
    encoder(ours, tokens).mean().backward()

    theirs = wide.token_embedding(tokens).detach().requires_grad_()
    x = wide.transformer((theirs + wide.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    x = wide.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ wide.text_projection
    x.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
