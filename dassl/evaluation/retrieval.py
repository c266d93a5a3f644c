"""Retrieval results: Recall@K and mAP@K, from images to texts and from texts to images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from yacs.config import CfgNode

from dassl.log_format import RESULT
from dassl.utils import NotANumber, UserError

from .build import EVALUATOR_REGISTRY
from .evaluator import EvaluatorBase

BLOCK = 1 << 24  # scores that are in memory at a time, in rows of whole queries
RECALL_AT = (1, 5, 10)
MAP_AT = 10
NEVER = 2**62  # the rank of a candidate that is not there


@EVALUATOR_REGISTRY.register()
class Retrieval(EvaluatorBase):
    """All in percent, an image having one text or several.

    From image to text, Recall@K is the share of images one of whose own texts is among the first K; from text to image,
    each text is a query with one right answer. ``recall@1``, the mean of the two Recall@1, is the result that counts.
    mAP@K is the mean over the queries of AP@K: the sum of the precision at each rank up to K that holds a right answer,
    divided by the smaller of K and the number of right answers. Of equal scores, those of right answers come last.
    """

    def __init__(self, cfg: CfgNode, **_):
        super().__init__(cfg)
        self.reset()

    def reset(self) -> None:
        self._images: list[torch.Tensor] = []
        self._texts: list[torch.Tensor] = []
        self._numbers: list[torch.Tensor] = []
        self._owners: list[torch.Tensor] = []

    def process(self, mo: tuple[torch.Tensor, torch.Tensor], gt: tuple[torch.Tensor, torch.Tensor]) -> None:
        """
        Args:
            mo: features of images (n, dim) and of texts (m, dim); their dot product is the score.
            gt: numbers of the images (n,), and of each text's image (m,).
        """
        for kept, new in zip((self._images, self._texts, self._numbers, self._owners), (*mo, *gt), strict=True):
            kept.append(new)

    def evaluate(self) -> OrderedDict[str, float]:
        """
        Raises:
            UserError: there is nothing to evaluate, or a feature is infinite or not a number.
        """
        if not self._images:
            raise UserError("there is nothing to evaluate: the test set is empty")
        images, texts = torch.cat(self._images).float(), torch.cat(self._texts).float()
        if not (images.isfinite().all() and texts.isfinite().all()):
            raise NotANumber("some features are infinite or not a number: the model has diverged")
        place = {number: row for row, number in enumerate(torch.cat(self._numbers).tolist())}
        image_of = torch.tensor([place[owner] for owner in torch.cat(self._owners).tolist()])
        own_texts: list[list[int]] = [[] for _ in place]
        for text, image in enumerate(image_of.tolist()):
            own_texts[image].append(text)
        directions = {
            "i2t": (ranks_of_own(images, texts, own_texts), [len(own) for own in own_texts]),
            "t2i": (ranks_of_own(texts, images, image_of[:, None].tolist()), [1] * len(texts)),
        }
        results = OrderedDict({"recall@1": 0.0})
        for name, (ranks, counts) in directions.items():
            results |= {f"{name}_recall@{k}": recall(ranks, k) for k in RECALL_AT}
            results[f"{name}_map@{MAP_AT}"] = mean_average_precision(ranks, torch.tensor(counts), MAP_AT)
        results["recall@1"] = (results["i2t_recall@1"] + results["t2i_recall@1"]) / 2
        lines = (f"* {name}: {value:.2f}%" for name, value in results.items())
        print("\n".join((RESULT, f"* images: {len(images):,}", f"* texts: {len(texts):,}", *lines)))
        return results


def recall(ranks: torch.Tensor, k: int) -> float:
    """Percent of the queries one of whose own candidates is among the first ``k``, by :func:`ranks_of_own`."""
    return 100 * (ranks[:, 0] <= k).double().mean().item()


def mean_average_precision(ranks: torch.Tensor, counts: torch.Tensor, k: int) -> float:
    """mAP@k in percent.

    Args:
        ranks: of :func:`ranks_of_own`, with at least ``k`` columns, or one for each of a query's own candidates.
        counts: (queries,), how many own candidates there are.
    """
    precision = torch.arange(1, ranks.shape[1] + 1) / ranks.double()  # at the rank of each own candidate
    found = (precision * (ranks <= k)).sum(1) / counts.clamp(max=k)
    return 100 * found.mean().item()


def ranks_of_own(
    queries: torch.Tensor, candidates: torch.Tensor, own: list[list[int]], block: int = BLOCK
) -> torch.Tensor:
    """At which ranks, counted from 1, each query's own candidates stand among all candidates, the best first.

    Computed in blocks of ``block`` scores, so the matrix of all scores is never there.

    Args:
        queries: features (n, dim).
        candidates: features (m, dim).
        own: for each query the numbers of its own candidates, at least one.

    Returns:
        int64 (n, columns), on the CPU: of the best own candidates of each query, up to as many as the deepest rank that
        is asked for; a query with fewer has ``NEVER`` in the other columns.
    """
    columns = min(max(map(len, own)), max(*RECALL_AT, MAP_AT))
    ranks = torch.full((len(queries), columns), NEVER)
    rows = max(1, block // len(candidates))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ candidates.t()
        mine = own[start : start + rows]
        row = torch.repeat_interleave(torch.arange(len(mine)), torch.tensor([len(numbers) for numbers in mine]))
        column = torch.tensor([number for numbers in mine for number in numbers])
        place = torch.tensor([at for numbers in mine for at in range(len(numbers))])
        best = scores.new_full((len(mine), max(map(len, mine))), -torch.inf)
        best[row, place] = scores[row, column]
        best = best.sort(dim=1, descending=True).values[:, :columns]
        scores[row, column] = -torch.inf
        for at, score in enumerate(best.t()):
            others = torch.count_nonzero(scores >= score[:, None], dim=1)
            ranks[start : start + rows, at] = torch.where(score.isfinite(), others + at + 1, NEVER).cpu()
    return ranks
