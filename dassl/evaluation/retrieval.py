"""Retrieval metrics: Recall@K and mAP@K, from images to texts and from texts to images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from yacs.config import CfgNode

from dassl.log_format import RESULT_HEADER
from dassl.utils import NonFiniteError, UserError

from .build import EVALUATOR_REGISTRY
from .evaluator import EvaluatorBase

BLOCK_SCORES = 1 << 24  # scores computed at a time; in float64, 128 MiB of memory
RECALL_AT = (1, 5, 10)  # the K of Recall@K that papers on image-text retrieval report
MAP_AT = 10  # the K of mAP@K, the largest of these
MAX_RANK = max(*RECALL_AT, MAP_AT)  # lower ranks count in no metric


@EVALUATOR_REGISTRY.register()
class Retrieval(EvaluatorBase):
    """Recall@K and mAP@K in percent, for images with one text or several.

    From image to text, Recall@K is the share of images of which a text is among the first K. From text to image, each
    text is a query with one match. ``recall@1``, the mean of both Recall@1, serves model selection. mAP@K is the mean
    of AP@K over the queries: the sum of the precision at each rank up to K that holds a match, divided by the smaller
    of K and the number of matches. Among equal scores, matches come last.
    """

    def __init__(self, cfg: CfgNode, **_):
        super().__init__(cfg)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        # Each list holds one tensor a batch; the arguments of ``process``.
        self._batches: tuple[list[torch.Tensor], ...] = ([], [], [], [])

    def process(self, mo: tuple[torch.Tensor, torch.Tensor], gt: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add a batch.

        Args:
            mo: features of images (n, dim) and of texts (m, dim); their dot product is the score.
            gt: numbers of the images (n,), unique in the test set, and the number of each text's image (m,).
        """
        for tensors, tensor in zip(self._batches, (*mo, *gt), strict=True):
            tensors.append(tensor)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return ``recall@1``, then recall@1, 5, 10 and map@10 of each direction, such as ``i2t_recall@5``.

        Raises:
            UserError: no image was processed, or a feature is infinite or not a number.
        """
        if not self._batches[0]:
            raise UserError("there is nothing to evaluate: the test set is empty")
        images, texts, image_ids, text_image_ids = map(torch.cat, self._batches)
        images, texts = images.float(), texts.float()
        if not (images.isfinite().all() and texts.isfinite().all()):
            raise NonFiniteError("some features are infinite or not a number: the model has diverged")
        image_ids, text_image_ids = image_ids.to(images.device), text_image_ids.to(images.device)
        directions = {
            "i2t": (images, texts, image_ids, text_image_ids),
            "t2i": (texts, images, text_image_ids, image_ids),
        }
        results = OrderedDict({"recall@1": 0.0})
        for name, arguments in directions.items():
            hits, counts = rank_matches(*arguments)
            results |= {f"{name}_recall@{k}": recall(hits, k) for k in RECALL_AT}
            results[f"{name}_map@{MAP_AT}"] = mean_average_precision(hits, counts, MAP_AT)
        results["recall@1"] = (results["i2t_recall@1"] + results["t2i_recall@1"]) / 2
        lines = (f"* {name}: {value:.2f}%" for name, value in results.items())
        print("\n".join((RESULT_HEADER, f"* images: {len(images):,}", f"* texts: {len(texts):,}", *lines)))
        return results


def recall(hits: torch.Tensor, k: int) -> float:
    """Return the percentage of queries with a match in the first ``k`` columns of ``hits`` (queries, ranks)."""
    return 100 * hits[:, :k].any(1).double().mean().item()


def mean_average_precision(hits: torch.Tensor, counts: torch.Tensor, k: int) -> float:
    """Return mAP@k in percent, the mean of AP@k over all queries.

    ``hits`` (queries, ranks) and ``counts`` (queries,) are the results of :func:`rank_matches`. AP@k is the sum of the
    precision at each rank up to ``k`` that is a hit, divided by min(``k``, count); it is NaN for a count of 0.
    """
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
    """Return which of the best candidates of each query are matches, and the number of all matches of each query.

    About ``block`` scores are computed at a time, so the matrix of all scores is never in memory. Among equal scores,
    matches come last.

    Args:
        queries: features (n, dim); the score is the dot product with the candidate's.
        candidates: features (m, dim).
        query_images: number of each query's image (n,); a candidate of the same image is a match.
        candidate_images: number of each candidate's image (m,).

    Returns:
        bool (n, min(MAX_RANK, m)), the best candidate first, and int64 (n,), both on the CPU.
    """
    hits, counts = [], []
    rows = max(1, block // len(candidates))
    for features, images in zip(queries.split(rows), query_images.split(rows), strict=True):
        is_match = images[:, None] == candidate_images
        scores = (features @ candidates.t()).double()
        scores[is_match] = scores[is_match].nextafter(scores.new_tensor(-torch.inf))  # matches come after equal scores
        best = scores.topk(min(MAX_RANK, len(candidates)), dim=1).indices
        hits.append(is_match.gather(1, best).cpu())
        counts.append(is_match.sum(1).cpu())
    return torch.cat(hits), torch.cat(counts)
