"""Retrieval results: Recall@K and mAP@K, from images to texts and from texts to images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from yacs.config import CfgNode

from dassl.log_format import RESULT_HEADER
from dassl.utils import NonFiniteError, UserError

from .build import EVALUATOR_REGISTRY
from .evaluator import EvaluatorBase

BLOCK_SCORES = 1 << 24  # scores that are in memory at a time, in rows of whole queries
RECALL_AT = (1, 5, 10)
MAP_AT = 10
MAX_RANK = max(*RECALL_AT, MAP_AT)  # best candidates of a query that count


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
        self._images, self._texts, self._numbers, self._owners = [], [], [], []  # tensors, one a batch

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
            raise NonFiniteError("some features are infinite or not a number: the model has diverged")
        numbers, owners = torch.cat(self._numbers).to(images.device), torch.cat(self._owners).to(images.device)
        directions = {"i2t": (images, texts, numbers, owners), "t2i": (texts, images, owners, numbers)}
        results = OrderedDict({"recall@1": 0.0})
        for name, (queries, candidates, query_images, candidate_images) in directions.items():
            hits, counts = rank_matches(queries, candidates, query_images, candidate_images)
            results |= {f"{name}_recall@{k}": recall(hits, k) for k in RECALL_AT}
            results[f"{name}_map@{MAP_AT}"] = mean_average_precision(hits, counts, MAP_AT)
        results["recall@1"] = (results["i2t_recall@1"] + results["t2i_recall@1"]) / 2
        lines = (f"* {name}: {value:.2f}%" for name, value in results.items())
        print("\n".join((RESULT_HEADER, f"* images: {len(images):,}", f"* texts: {len(texts):,}", *lines)))
        return results


def recall(hits: torch.Tensor, k: int) -> float:
    """Return the percentage of queries with a right answer among the first ``k``; ``hits`` as of :func:`rank_matches`."""
    return 100 * hits[:, :k].any(1).double().mean().item()


def mean_average_precision(hits: torch.Tensor, counts: torch.Tensor, k: int) -> float:
    """Return mAP@k in percent; the arguments are what :func:`rank_matches` returns."""
    hits = hits[:, :k].double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return 100 * ((precision * hits).sum(1) / counts.clamp(max=k)).mean().item()


def rank_matches(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_images: torch.Tensor,
    candidate_images: torch.Tensor,
    block: int = BLOCK_SCORES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the best candidates of each query are right, and how many right ones there are.

    Computed in blocks of ``block`` scores, so the matrix of all scores is never there.

    Args:
        queries: features (n, dim).
        candidates: features (m, dim).
        query_images: the number of each query's image (n,); a candidate of the same image is right.
        candidate_images: the number of each candidate's image (m,).

    Returns:
        bool (n, DEPTH), the best first, and int64 (n,), both on the CPU.
    """
    hits, counts = [], []
    rows = max(1, block // len(candidates))
    for part, images in zip(queries.split(rows), query_images.split(rows), strict=True):
        right = images[:, None] == candidate_images
        scores = (part @ candidates.t()).double()
        scores[right] = scores[right].nextafter(scores.new_tensor(-torch.inf))  # after wrong ones of the same score
        best = scores.topk(min(MAX_RANK, len(candidates)), dim=1).indices
        hits.append(right.gather(1, best).cpu())
        counts.append(right.sum(1).cpu())
    return torch.cat(hits), torch.cat(counts)
