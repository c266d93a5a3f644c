"""The captions of a data set's images: those to encode for retrieval, and those that are too long for the encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from dassl.data.datasets import DatasetBase
from dassl.utils import UserError
from vlm.text.encoder import TextEncoder

SPLITS = {"train_x": "train", "val": "val", "test": "test"}  # attribute of the data set -> word in the log


def tokenize_captions(encoder: TextEncoder, captions: Sequence[str]) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Return token ids (n, length) of captions, cut to the context length, and those of each without padding.

    Captions with equal ids, such as "a dog" and "A  dog", are equal to the text encoder.
    """
    tokens = encoder.tokenize(captions, truncate=True)
    lengths = encoder.lengths(tokens).tolist()
    return tokens, [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths, strict=True)]


class RetrievalCaptions:
    """The distinct captions (``tokenize_captions``) of each split, numbered from 0 in the order of its images.

    A caption is encoded with the first of its images: once, in a batch that is the same for any number of processes.

    Attributes:
        shared: by split, how many captions of its images are equal to one of an earlier image; only if above 0.
    """

    def __init__(self, encoder: TextEncoder, splits: Mapping[str, Iterable]):
        """Number the captions of ``splits``, lists of images with ``label`` and ``captions`` by name."""
        # By label: captions that no earlier image of the split has, their numbers, the numbers of all its captions.
        self._by_label: dict[int, tuple[list[str], list[int], list[int]]] = {}
        self.shared: dict[str, int] = {}
        for split, images in splits.items():
            numbers: dict[tuple[int, ...], int] = {}
            num_captions = 0
            for image in images:
                ids = tokenize_captions(encoder, image.captions)[1]
                new = {key: caption for key, caption in zip(ids, image.captions, strict=True) if key not in numbers}
                numbers |= zip(new, range(len(numbers), len(numbers) + len(new)), strict=True)
                new_numbers, all_numbers = ([numbers[key] for key in keys] for keys in (new, ids))
                self._by_label[image.label] = [*new.values()], new_numbers, all_numbers
                num_captions += len(set(ids))
            if num_captions > len(numbers):
                self.shared[split] = num_captions - len(numbers)

    def of_batch(self, labels: Sequence[int]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Return the captions to encode with a batch, their numbers (m,), and pairs (p, 2) of label and number."""
        images = [self._by_label[label] for label in labels]
        captions = [caption for new, _, _ in images for caption in new]
        numbers = [number for _, new, _ in images for number in new]
        pairs = [(label, number) for label, (_, _, own) in zip(labels, images, strict=True) for number in own]
        return captions, torch.tensor(numbers, dtype=torch.int64), torch.tensor(pairs)


def describe_truncated(dataset: DatasetBase, encoder: TextEncoder) -> str:
    """Return how many captions are too long for ``encoder``, which reads their beginning, by split.

    Such as "Captions above 77 tokens, cut: 12 of 5,000 train, 3 of 500 test".
    """
    counts = []
    for split, word in SPLITS.items():
        captions = [caption for image in getattr(dataset, split) or () for caption in image.captions]
        too_long = sum(is_too_long(encoder, caption) for caption in captions)
        counts += [f"{too_long:,} of {len(captions):,} {word}"] if captions else []
    return f"Captions above {encoder.context_length} tokens, cut: {', '.join(counts)}"


def is_too_long(encoder: TextEncoder, caption: str) -> bool:
    """Return whether ``caption`` has more tokens, start and end included, than ``encoder`` has positions."""
    limit = encoder.context_length - 2
    if len(caption.encode("utf-8", "surrogatepass")) <= limit:  # quick: each token stands for a byte or more
        return False
    try:
        return encoder.count_tokens(caption) > limit
    except UserError:  # too long for counting
        return True
