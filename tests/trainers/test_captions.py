"""The captions that are encoded with a batch, and their numbers."""

from types import SimpleNamespace

from trainers.captions import RetrievalCaptions


def test_each_split_has_its_own_numbers_and_a_caption_comes_with_its_first_image():
    captions = {4: ["a", "b"], 5: ["b", "b", "c"], 9: ["b"], 7: ["c"]}  # by label
    images = {label: SimpleNamespace(label=label, captions=texts) for label, texts in captions.items()}
    index = RetrievalCaptions([images[4], images[5]], [images[9], images[7]])
    texts, numbers, pairs = index.of_batch([5, 4])
    assert (texts, numbers.tolist()) == (["c", "a", "b"], [2, 0, 1])
    assert pairs.tolist() == [[5, 1], [5, 1], [5, 2], [4, 0], [4, 1]]
    texts, numbers, pairs = index.of_batch([9, 7])
    assert (texts, numbers.tolist(), pairs.tolist()) == (["b", "c"], [0, 1], [[9, 0], [7, 1]])
    assert index.of_batch([4])[0] == ["a", "b"]
