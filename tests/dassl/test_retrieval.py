"""Retrieval metrics equal those of the whole score matrix, though they are computed in blocks."""

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
    """The retrieval evaluator."""
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Retrieval"
    return build_evaluator(cfg, lab2cname={})


def random_problem(images=30, texts=70, dim=6):
    """Return random features of images and texts, the images' numbers, and the number of each text's image."""
    generator = torch.Generator().manual_seed(0)
    image_ids = torch.randperm(images, generator=generator) + 100
    text_image_ids = torch.cat([image_ids, image_ids[torch.randint(images, (texts - images,), generator=generator)]])
    features = [normalize(torch.randn(n, dim, generator=generator), dim=1) for n in (images, texts)]
    return (*features, image_ids, text_image_ids)


def process(evaluator, images, texts, image_ids, text_image_ids):
    """Give the evaluator a batch in which each text is a text of its own, that of one image."""
    text_ids = torch.arange(len(texts)) + 1000 * image_ids[0]  # other numbers in each batch
    evaluator.process((images, texts), (image_ids, text_ids, torch.stack([text_image_ids, text_ids], 1)))


def make_pairs(query_images, candidate_images):
    """Return the rows of queries and candidates of the same image, (p, 2)."""
    return (torch.as_tensor(query_images)[:, None] == torch.as_tensor(candidate_images)).nonzero()


def metrics_by_sorting(scores: np.ndarray, is_match: np.ndarray) -> dict:
    """Return the metrics of one direction from the whole matrix; ``is_match`` is a bool (queries, candidates)."""
    hits = np.take_along_axis(is_match, np.argsort(-scores, axis=1), axis=1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    average = (precision * hits)[:, :10].sum(1) / np.minimum(is_match.sum(1), 10)
    return {"map@10": 100 * average.mean(), **{f"recall@{k}": 100 * hits[:, :k].any(1).mean() for k in (1, 5, 10)}}


def test_all_metrics_equal_those_of_the_whole_score_matrix(evaluator):
    images, texts, image_ids, text_image_ids = random_problem()
    for batch in (slice(0, 7), slice(7, 30)):
        in_batch = torch.isin(text_image_ids, image_ids[batch])
        process(evaluator, images[batch], texts[in_batch], image_ids[batch], text_image_ids[in_batch])
    results = evaluator.evaluate()
    scores, is_match = (images @ texts.t()).numpy(), (image_ids[:, None] == text_image_ids).numpy()
    for name, expected in (
        ("i2t", metrics_by_sorting(scores, is_match)),
        ("t2i", metrics_by_sorting(scores.T, is_match.T)),
    ):
        for metric, value in expected.items():
            assert results[f"{name}_{metric}"] == pytest.approx(value), (name, metric)
    assert next(iter(results)) == "recall@1"
    assert results["recall@1"] == pytest.approx((results["i2t_recall@1"] + results["t2i_recall@1"]) / 2)


def test_an_image_counts_by_its_best_text_and_each_text_is_a_query(evaluator):
    images = torch.eye(2)
    texts = torch.tensor(
        [[0.9, 0.1], [0.2, 0.8], [0.1, 0.7]]
    )  # the second text is the first image's, but resembles the second image
    process(evaluator, images, texts, torch.tensor([5, 3]), torch.tensor([5, 5, 3]))
    results = evaluator.evaluate()
    assert results["i2t_recall@1"] == 50  # the first image finds its first text; the second finds a text of the first
    assert results["t2i_recall@1"] == pytest.approx(100 * 2 / 3)
    # The first image's texts have ranks 1 and 2: (1/1 + 2/2) / 2. The second's has rank 2: 1/2.
    assert results["i2t_map@10"] == pytest.approx(100 * (1 + 1 / 2) / 2)


def test_among_equal_scores_matches_come_last():
    hits, counts = rank_matches(torch.ones(3, 2), torch.ones(4, 2), make_pairs([0, 1, 2], [0, 1, 2, 1]))
    assert hits.int().tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]]
    assert recall(hits, 3) == pytest.approx(100 / 3)
    assert mean_average_precision(hits, counts, 10) == pytest.approx(100 * ((1 / 4) + (1 / 3 + 2 / 4) / 2 + 1 / 4) / 3)


def test_average_precision_divides_by_k_where_there_are_more_than_k_matches(evaluator):
    """The first image has twelve texts, and the other image's text comes before the sixth of them. So nine of the first
    ten texts are matches, and AP@10 divides by ten."""
    positions = torch.arange(13.0)
    texts = torch.stack(
        [20 - positions, positions], dim=1
    )  # the first image's scores are 20, 19, …, the other's 0, 1, …
    text_image_ids = torch.tensor([1, 1, 1, 1, 1, 2, *[1] * 7])
    process(evaluator, torch.eye(2), texts, torch.tensor([1, 2]), text_image_ids)
    results = evaluator.evaluate()
    first = (5 + 6 / 7 + 7 / 8 + 8 / 9 + 9 / 10) / 10
    second = 1 / 8  # its text has rank 8
    assert results["i2t_map@10"] == pytest.approx(100 * (first + second) / 2)


def duplicate_captions(evaluator, images: int, texts: int, order: list[int]) -> dict:
    """Return the metrics of a model that is always right, on ``images`` images with one of ``texts`` captions each.

    The images come in batches of one, in this ``order``; a caption comes with the first of its images.
    """
    features = torch.eye(texts)
    for image in order:
        text = torch.tensor([image % texts])
        is_new = image < texts
        pairs = torch.tensor([[image, image % texts]])
        evaluator.process((features[text], features[text[:is_new]]), (torch.tensor([image]), text[:is_new], pairs))
    return evaluator.evaluate()


@pytest.mark.parametrize("order", [range(100), range(99, -1, -1)])
def test_a_model_that_is_always_right_has_full_marks_where_captions_are_equal(evaluator, order, capsys):
    results = duplicate_captions(evaluator, 100, 4, [*order])
    assert set(results.values()) == {100}
    assert "* images: 100\n* texts: 100\n" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "count"), [("images", 40), ("texts", 13)])
def test_a_constant_model_is_refused(evaluator, kind, count):
    pairs = torch.tensor([[image, image % 13] for image in range(40)])
    features = {"images": torch.randn(40, 3), "texts": torch.randn(13, 3)}
    features[kind][:] = 1 / 3
    evaluator.process((features["images"], features["texts"]), (torch.arange(40), torch.arange(13), pairs))
    with pytest.raises(UserError, match=f"all {count} {kind} have the same feature: the weights are damaged"):
        evaluator.evaluate()


def test_one_image_with_one_text_is_found(evaluator):
    evaluator.process((torch.eye(1), torch.eye(1)), (torch.arange(1), torch.arange(1), torch.zeros(1, 2).long()))
    assert set(evaluator.evaluate().values()) == {100}


def test_an_image_finds_all_texts_equal_to_one_of_its_own_and_a_shared_text_finds_all_its_images(evaluator):
    """All images share text 0, which stands in three rows. Text 1 is another one of image 1."""
    images, texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0.2]]), torch.tensor([[0.6, 0.5, 0.7], [0, 1, 0]])
    pairs = torch.tensor([[0, 0], [1, 0], [2, 0], [1, 1]])
    evaluator.process((images, texts), (torch.arange(3), torch.arange(2), pairs))
    results = evaluator.evaluate()
    # The texts of the ranked rows of images 0, 1, 2 are 0 0 0 1, 1 0 0 0 and 1 0 0 0.
    assert results["i2t_recall@1"] == pytest.approx(100 * 2 / 3)
    assert results["i2t_map@10"] == pytest.approx(100 * (1 + 1 + (1 / 2 + 2 / 3 + 3 / 4) / 3) / 3)
    # Text 0, in three queries, finds its images 2 0 1; text 1, in one query, finds 2 and then, at an equal score, 1.
    assert results["t2i_recall@1"] == 75
    assert results["t2i_map@10"] == pytest.approx(100 * (3 + 1 / 2) / 4)


class LargestTensor(TorchDispatchMode):
    """A mode that records the number of elements of the largest tensor created."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("block", [1, 500, 7_000])
def test_blocks_give_the_same_ranks_and_bound_the_memory(block):
    images, texts, image_ids, text_image_ids = random_problem(400, 700)
    pairs = make_pairs(image_ids, text_image_ids)
    at_once = rank_matches(images, texts, pairs)
    with LargestTensor() as largest:
        blocks = rank_matches(images, texts, pairs, block=block)
    assert all(map(torch.equal, blocks, at_once))
    assert largest.elements <= max(block, len(texts) * 6, blocks[0].numel())


def test_a_block_of_100_000_pairs_takes_less_than_100_mb():
    rows = retrieval.BLOCK_SCORES // 100_000
    assert rows >= 1
    assert rows * 100_000 * 4 < 100e6  # bytes


def test_the_log_parser_reads_retrieval_metrics(evaluator, tmp_path, capsys):
    images, texts, image_ids, text_image_ids = random_problem()
    process(evaluator, images, texts, image_ids, text_image_ids)
    results = evaluator.evaluate()
    (tmp_path / "exp/seed1").mkdir(parents=True)
    log = capsys.readouterr().out
    (tmp_path / "exp/seed1/log.txt").write_text(f"Finish training\n{log}")
    assert log.startswith("=> result\n* images: 30\n* texts: 70\n* recall@1: ")
    for keyword in ("recall@1", "i2t_recall@1", "t2i_map@10"):
        assert parse_test_res.main([str(tmp_path / "exp"), "--keyword", keyword]) == 0
        assert f"* {keyword}: {results[keyword]:.2f}% +- 0.00%" in capsys.readouterr().out


def test_an_empty_test_set_and_nan_features_are_refused(evaluator):
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()
    images, texts, image_ids, text_image_ids = random_problem()
    images[3, 0] = torch.nan
    process(evaluator, images, texts, image_ids, text_image_ids)
    with pytest.raises(UserError, match="not a number"):
        evaluator.evaluate()
    evaluator.reset()
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluator.evaluate()
