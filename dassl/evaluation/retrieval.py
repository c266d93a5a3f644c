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
    """Recall@K and mAP@K in percent, for images with one text or several, and for texts of one image or several.

    An image and a text match if they are a pair. As in publications, the texts count once in each of their pairs: from
    image to text, the candidates are the texts of all pairs; from text to image, each pair's text is a query. Recall@K
    is the share of queries with a match among the first K candidates. ``recall@1``, the mean of both Recall@1, serves
    model selection. mAP@K is the mean of AP@K over the queries: the sum of the precision at each rank up to K that
    holds a match, divided by the smaller of K and the number of matches. Among equal scores, matches come last.
    """

    def __init__(self, cfg: CfgNode, **_):
        super().__init__(cfg)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        # Each list holds one tensor a batch; the arguments of ``process``.
        self._batches: tuple[list[torch.Tensor], ...] = ([], [], [], [], [])

    def process(
        self, mo: tuple[torch.Tensor, torch.Tensor], gt: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> None:
        """Add a batch.

        Args:
            mo: features of images (n, dim) and of distinct texts (m, dim); their dot product is the score.
            gt: numbers of the images (n,) and of the texts (m,), each unique in the test set, and the pairs (p, 2) of
                an image's and a text's number, which may be of other batches.
        """
        for tensors, tensor in zip(self._batches, (*mo, *gt), strict=True):
            tensors.append(tensor)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return ``recall@1``, then recall@1, 5, 10 and map@10 of each direction, such as ``i2t_recall@5``.

        Raises:
            UserError: no image was processed; a feature is infinite or not a number; or all images, or all texts, have
                the same feature.
        """
        if not self._batches[0]:
            raise UserError("there is nothing to evaluate: the test set is empty")
        images, texts, image_ids, text_ids, pairs = map(torch.cat, self._batches)
        images, texts = images.float(), texts.float()
        image_ids, text_ids, pairs = (numbers.to(images.device) for numbers in (image_ids, text_ids, pairs))
        if not (images.isfinite().all() and texts.isfinite().all()):
            raise NonFiniteError("some features are infinite or not a number: the model has diverged")
        for kind, features in (("images", images), ("texts", texts)):
            if len(features) > 1 and (features == features[0]).all():
                cause = f"the weights are damaged, the model has collapsed, or the {kind} are the same to it"
                raise UserError(f"all {len(features):,} {kind} have the same feature: {cause}")
        pair_images, pair_texts = pairs.t().contiguous()
        image_rows, text_rows = find_rows(image_ids, pair_images), find_rows(text_ids, pair_texts)
        hits, counts = rank_matches(texts, images, torch.stack([text_rows, image_rows], 1))
        queries = text_rows.cpu()
        directions = {
            "i2t": rank_matches(images, texts, torch.stack([image_rows, text_rows], 1), columns=text_rows),
            "t2i": (hits[queries], counts[queries]),
        }
        results = OrderedDict({"recall@1": 0.0})
        for name, (hits, counts) in directions.items():
            results |= {f"{name}_recall@{k}": recall(hits, k) for k in RECALL_AT}
            results[f"{name}_map@{MAP_AT}"] = mean_average_precision(hits, counts, MAP_AT)
        results["recall@1"] = (results["i2t_recall@1"] + results["t2i_recall@1"]) / 2
        lines = (f"* {name}: {value:.2f}%" for name, value in results.items())
        print("\n".join((RESULT_HEADER, f"* images: {len(images):,}", f"* texts: {len(pairs):,}", *lines)))
        return results


def recall(hits: torch.Tensor, k: int) -> float:
    """Return the percentage of queries with a match in the first ``k`` columns of ``hits`` (queries, ranks)."""
    return 100 * hits[:, :k].any(1).double().mean().item()


def mean_average_precision(hits: torch.Tensor, counts: torch.Tensor, k: int) -> float:
    """Return mAP@k in percent, the mean of AP@k over all queries.

    ``hits`` (queries, ranks) and ``counts`` (queries,) are the results of ``rank_matches``. AP@k is the sum of the
    precision at each rank up to ``k`` that is a hit, divided by min(``k``, count); it is NaN for a count of 0.
    """
    hits = hits[:, :k].double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return 100 * ((precision * hits).sum(1) / counts.clamp(max=k)).mean().item()


def find_rows(ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the index in ``ids`` (n,), distinct numbers, of each of ``values`` (p,), all of which are in ``ids``."""
    sorted_ids, order = ids.sort()
    return order[torch.searchsorted(sorted_ids, values)]


def rank_matches(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    pairs: torch.Tensor,
    columns: torch.Tensor | None = None,
    block: int = BLOCK_SCORES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the best candidates of each query are matches, and the number of all matches of each query.

    About ``block`` scores are computed at a time, so the matrix of all scores is never in memory. Among equal scores,
    matches come last.

    Args:
        queries: features (n, dim); the score is the dot product with the candidate's.
        candidates: features (m, dim).
        pairs: rows (p, 2) of matching queries and candidates.
        columns: row in ``candidates`` of each candidate (c,), where one stands for several; None: each once.

    Returns:
        bool (n, min(MAX_RANK, c)), the best candidate first, and int64 (n,), both on the CPU.
    """
    hits, counts = [], []
    count = len(candidates) if columns is None else max(len(candidates), len(columns))
    rows = max(1, block // count)
    for start, features in zip(range(0, len(queries), rows), queries.split(rows), strict=True):
        in_block = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + rows)]
        is_match = torch.zeros(len(features), len(candidates), dtype=torch.bool, device=features.device)
        is_match[in_block[:, 0] - start, in_block[:, 1]] = True
        scores = features @ candidates.t()
        if columns is not None:  # so equal candidates have exactly equal scores
            is_match, scores = is_match[:, columns], scores[:, columns]
        scores = scores.double()
        scores[is_match] = scores[is_match].nextafter(scores.new_tensor(-torch.inf))  # matches come after equal scores
        best = scores.topk(min(MAX_RANK, scores.shape[1]), dim=1).indices
        hits.append(is_match.gather(1, best).cpu())
        counts.append(is_match.sum(1).cpu())
    return torch.cat(hits), torch.cat(counts)
