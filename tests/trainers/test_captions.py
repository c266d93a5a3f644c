"""The captions that are encoded with a batch, and their numbers."""

from types import SimpleNamespace

import pytest

from trainers.captions import RetrievalCaptions
from vlm.clip.load import load_clip
from vlm.text.encoder import build_text_encoder


@pytest.fixture(scope="module")
def encoder():
    """The text encoder of the tiny CLIP."""
    return build_text_encoder(load_clip("tiny")[0])


def make_images(captions: dict[int, list[str]]) -> dict[int, SimpleNamespace]:
    """Return an image for each label with its captions."""
    return {label: SimpleNamespace(label=label, captions=texts) for label, texts in captions.items()}


def test_each_split_has_its_own_numbers_and_a_caption_comes_with_its_first_image(encoder):
    images = make_images({4: ["a", "b"], 5: ["b", "b", "c"], 9: ["b"], 7: ["c"]})
    index = RetrievalCaptions(encoder, {"val": [images[4], images[5]], "test": [images[9], images[7]]})
    texts, numbers, pairs = index.of_batch([5, 4])
    assert (texts, numbers.tolist()) == (["c", "a", "b"], [2, 0, 1])
    assert pairs.tolist() == [[5, 1], [5, 1], [5, 2], [4, 0], [4, 1]]
    texts, numbers, pairs = index.of_batch([9, 7])
    assert (texts, numbers.tolist(), pairs.tolist()) == (["b", "c"], [0, 1], [[9, 0], [7, 1]])
    assert index.of_batch([4])[0] == ["a", "b"]
    assert index.shared == {"val": 1}


def test_captions_are_equal_if_the_text_encoder_reads_the_same_tokens(encoder):
    long = "dog " * 80
    images = make_images({0: ["a dog", long], 1: ["A  Dog", f"{long} two"], 2: ["a dogs"]})
    index = RetrievalCaptions(encoder, {"test": images.values()})
    texts, numbers, pairs = index.of_batch([0, 1, 2])
    assert (texts, numbers.tolist()) == (["a dog", long, "a dogs"], [0, 1, 2])
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]]
    assert index.shared == {"test": 2}
