"""The tiny CLIP: its weights load alike everywhere, and its recipe runs."""

import numpy as np
import torch

from vlm.clip.load import load
from vlm.similarity import normalize
from vlm.text.prompts import tokenize
from vlm.tiny.captions import WORDS, caption
from vlm.tiny.pretrain import contrastive_loss, main
from vlm.tiny.render import FONT_FILES, SIZE, dataset, render
from vlm.tiny.weights import FILE, load_tiny


def test_the_weights_are_small_and_whole():
    assert FILE.stat().st_size < 4_000_000
    state_dict = load_tiny()
    assert state_dict["token_embedding.weight"].shape[0] == 49408
    assert all(torch.isfinite(value).all() for value in state_dict.values())
    again = load_tiny()
    assert all(torch.equal(value, again[key]) for key, value in state_dict.items())


def test_it_tells_renders_apart_that_it_has_not_seen():
    clip, _ = load("tiny")
    rng = np.random.default_rng(12345)
    images = np.stack([render(digit, rng)[0] for digit in range(10) for _ in range(10)])
    from vlm.tiny.pretrain import to_input

    texts = normalize(clip.encode_text(tokenize([f"a photo of the number {word}." for word in WORDS])))
    predicted = (normalize(clip.encode_image(to_input(torch.from_numpy(images)))) @ texts.t()).argmax(1)
    assert (predicted == torch.arange(10).repeat_interleave(10)).float().mean() > 0.7


def test_renders_are_the_same_for_a_seed():
    one, other, third = dataset(20, seed=1), dataset(20, seed=1), dataset(20, seed=2)
    assert one[0].shape == (20, SIZE, SIZE)
    assert np.array_equal(one[0], other[0])
    assert one[1] == other[1]
    assert not np.array_equal(one[0], third[0])


def test_every_font_draws_every_digit():
    from vlm.tiny.render import draw_glyph

    for font in FONT_FILES:
        glyphs = [draw_glyph(digit, font, 0) for digit in range(10)]
        assert all(glyph.size > 100 and glyph.max() > 0.9 for glyph in glyphs), font


def test_captions_name_the_digit_and_what_is_seen():
    rng = np.random.default_rng(0)
    _, looks = render(7, rng)
    looks.blurry, looks.paper = False, "black"
    captions = {caption(7, looks, rng) for _ in range(500)}
    assert len(captions) > 100
    assert all("seven" in text for text in captions)
    own = [text for text in captions if "background" in text]
    assert own
    assert all("black background" in text for text in own)


def test_equal_captions_are_positives_of_each_other():
    logits = torch.zeros(3, 3)
    same = contrastive_loss(logits, torch.tensor([0, 0, 1]))
    assert torch.isclose(same, torch.log(torch.tensor(3.0)))
    sharp = torch.full((3, 3), -50.0)
    sharp[:2, :2], sharp[2, 2] = 50, 50
    assert contrastive_loss(sharp, torch.tensor([0, 0, 1])) < 0.7  # log 2: two equal captions share the probability


def test_the_recipe_runs_and_repeats(tmp_path):
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        main(["--renders", "512", "--epochs", "1", "--out", str(path)])
    one, other = (load_tiny(path) for path in paths)
    assert one.keys() == load_tiny().keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
