"""Retrieval results: what the literature counts, in blocks."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator, retrieval
from dassl.evaluation.retrieval import mean_average_precision, rank_matches, recall
from dassl.utils import UserError
from tools import parse_test_res


@pytest.fixture
def evaluator():
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Retrieval"
    return build_evaluator(cfg, lab2cname={})


def random_problem(images=30, texts=70, dim=6):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randperm(images, generator=generator) + 100
    owners = torch.cat([numbers, numbers[torch.randint(images, (texts - images,), generator=generator)]])
    features = [normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (images, texts)]
    return (*features, numbers, owners)


def by_sorting(scores: np.ndarray, right: np.ndarray) -> dict:
    """The figures of one direction from the whole matrix: ``right`` (queries, candidates) tells the right answers."""
    hits = np.take_along_axis(right, np.argsort(-scores, axis=1), axis=1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits)[:, :10].sum(1) / np.minimum(right.sum(1), 10)
    return {"map@10": 100 * average.mean(), **{f"recall@{k}": 100 * hits[:, :k].any(1).mean() for k in (1, 5, 10)}}


def test_all_figures_are_those_of_the_whole_matrix(evaluator):
    images, texts, numbers, owners = random_problem()
    for part in (slice(0, 7), slice(7, 30)):  # in batches, as a loader gives them
        own = torch.isin(owners, numbers[part])
        evaluator.process((images[part], texts[own]), (numbers[part], owners[own]))
    results = evaluator.evaluate()
    scores, right = (images @ texts.t()).numpy(), (numbers[:, None] == owners).numpy()
    for name, expected in (("i2t", by_sorting(scores, right)), ("t2i", by_sorting(scores.T, right.T))):
        for figure, value in expected.items():
            assert results[f"{name}_{figure}"] == pytest.approx(value), (name, figure)
    assert next(iter(results)) == "recall@1"
    assert results["recall@1"] == pytest.approx((results["i2t_recall@1"] + results["t2i_recall@1"]) / 2)


def test_an_image_is_found_by_its_best_text_and_each_text_is_a_query(evaluator):
    images = torch.eye(2)
    texts = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.7]])  # the second is the first image's, but looks otherwise
    evaluator.process((images, texts), (torch.tensor([5, 3]), torch.tensor([5, 5, 3])))
    results = evaluator.evaluate()
    assert results["i2t_recall@1"] == 50  # the first image by its first text; before the second's own is a foreign one
    assert results["t2i_recall@1"] == pytest.approx(100 * 2 / 3)
    # Of the first image's texts, ranks 1 and 2: (1/1 + 2/2) / 2. Of the second's, rank 2: 1/2.
    assert results["i2t_map@10"] == pytest.approx(100 * (1 + 1 / 2) / 2)


def test_of_equal_scores_the_right_ones_come_last():
    hits, counts = rank_matches(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 1]))
    assert hits.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert recall(hits, 3) == pytest.approx(100 / 3)
    assert mean_average_precision(hits, counts, 10) == pytest.approx(100 * ((1 / 4) + (1 / 3 + 2 / 4) / 2 + 1 / 4) / 3)


def test_more_right_answers_than_places(evaluator):
    """An image with twelve texts, of which a foreign one comes before the sixth. Among the first ten there are nine of
    its own, and ten would be the most."""
    places = torch.arange(13.0)
    texts = torch.stack([20 - places, places], dim=1)  # the first image's scores are 20, 19, …, the other's 0, 1, …
    owners = torch.tensor([1, 1, 1, 1, 1, 2, *[1] * 7])
    evaluator.process((torch.eye(2), texts), (torch.tensor([1, 2]), owners))
    results = evaluator.evaluate()
    first = (5 + 6 / 7 + 7 / 8 + 8 / 9 + 9 / 10) / 10
    second = 1 / 8  # the rank of its text: 7 come before it
    assert results["i2t_map@10"] == pytest.approx(100 * (first + second) / 2)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("block", [1, 500, 7_000])
def test_blocks_change_nothing_and_bound_the_memory(block):
    images, texts, numbers, owners = random_problem(400, 700)
    whole = rank_matches(images, texts, numbers, owners)
    with Largest() as largest:
        blocks = rank_matches(images, texts, numbers, owners, block=block)
    assert all(map(torch.equal, blocks, whole))
    assert largest.elements <= max(block, len(texts) * 6, blocks[0].numel())


def test_the_blocks_of_100_000_pairs_are_small():
    rows = retrieval.BLOCK_SCORES // 100_000
    assert rows >= 1
    assert rows * 100_000 * 4 < 100e6  # bytes


def test_the_parser_reads_the_log(evaluator, tmp_path, capsys):
    images, texts, numbers, owners = random_problem()
    evaluator.process((images, texts), (numbers, owners))
    results = evaluator.evaluate()
    (tmp_path / "exp/seed1").mkdir(parents=True)
    log = capsys.readouterr().out
    (tmp_path / "exp/seed1/log.txt").write_text(f"Finish training\n{log}")
    assert log.startswith("=> result\n* images: 30\n* texts: 70\n* recall@1: ")
    for keyword in ("recall@1", "i2t_recall@1", "t2i_map@10"):
        assert parse_test_res.main([str(tmp_path / "exp"), "--keyword", keyword]) == 0
        assert f"* {keyword}: {results[keyword]:.2f}% +- 0.00%" in capsys.readouterr().out


def test_what_cannot_be_ranked_is_refused(evaluator):
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()
    images, texts, numbers, owners = random_problem()
    images[3, 0] = torch.nan
    evaluator.process((images, texts), (numbers, owners))
    with pytest.raises(UserError, match="not a number"):
        evaluator.evaluate()
    evaluator.reset()
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()
