"""The tiny CLIP: its accuracy on unseen renders, and its pretraining."""

import numpy as np
import torch

from vlm.clip.load import load_clip
from vlm.similarity import normalize
from vlm.text.tokenizer import tokenize
from vlm.tiny.captions import WORDS
from vlm.tiny.pretrain import main, preprocess
from vlm.tiny.render import render_digit
from vlm.tiny.weights import load_tiny


def test_it_classifies_renders_that_it_was_not_trained_on():
    clip, _ = load_clip("tiny")
    rng = np.random.default_rng(12345)
    images = np.stack([render_digit(digit, rng)[0] for digit in range(10) for _ in range(10)])
    texts = normalize(clip.encode_text(tokenize([f"a photo of the number {word}." for word in WORDS])))
    predicted = (normalize(clip.encode_image(preprocess(torch.from_numpy(images)))) @ texts.t()).argmax(1)
    assert (predicted == torch.arange(10).repeat_interleave(10)).float().mean() > 0.7


def test_pretraining_twice_gives_the_same_weights(tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        main(["--renders", "256", "--epochs", "1", "--out", str(path)])
    one, other = (load_tiny(path) for path in paths)
    assert one.keys() == load_tiny().keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
