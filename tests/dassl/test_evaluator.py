"""Classification metrics equal those counted by hand."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.utils import NonFiniteError

# No image is of class 3, but one is predicted as it. Correct are 4 of 6 images: 2/3, 1/2 and 1/1 of the classes.
TRUE = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 3, 1, 2, 2]
# 2 * correct / (images of the class + images predicted as it), for each class that occurs
F1 = (2 * 2 / (3 + 2), 2 * 1 / (2 + 1), 2 * 1 / (1 + 2))


@pytest.fixture
def evaluator(tmp_path):
    """The classification evaluator with per-class results and the confusion matrix."""
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    return build_evaluator(cfg, lab2cname=dict(enumerate("abcd")))


def process_batches(evaluator) -> None:
    """Process all images in batches of four and two."""
    for start, stop in pairwise((0, 4, 6)):
        predicted = torch.tensor(PREDICTED[start:stop])
        evaluator.process(F.one_hot(predicted, 4).float(), torch.tensor(TRUE[start:stop]))


def test_metrics_equal_those_counted_by_hand(evaluator):
    process_batches(evaluator)
    results = evaluator.evaluate()
    assert next(iter(results)) == "accuracy"  # the engine compares epochs by the first metric
    assert results == pytest.approx(
        {
            "accuracy": 100 * 4 / 6,
            "error_rate": 100 * 2 / 6,
            "macro_f1": 100 * sum(F1) / 3,
            "perclass_accuracy": 100 * (2 / 3 + 1 / 2 + 1) / 3,
        }
    )


def test_a_reset_forgets_all_batches(evaluator):
    evaluator.process(torch.eye(4), torch.tensor([3, 3, 3, 3]))
    evaluator.evaluate()
    evaluator.reset()
    process_batches(evaluator)
    assert (evaluator._correct, evaluator._total) == (4, 6)  # third-party code reads them
    assert evaluator._per_class_res == {0: [1, 1, 0], 1: [1, 0], 2: [1]}
    results = evaluator.evaluate()
    assert (results["accuracy"], results["macro_f1"]) == pytest.approx((100 * 4 / 6, 100 * sum(F1) / 3))
    assert results["perclass_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)


def test_rows_of_the_confusion_matrix_are_true_classes(evaluator, tmp_path):
    process_batches(evaluator)
    evaluator.evaluate()
    expected = [[2 / 3, 0, 0, 1 / 3], [0, 1 / 2, 1 / 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.load(tmp_path / "cmat.pt", weights_only=True).tolist() == [pytest.approx(row) for row in expected]


def test_the_confusion_matrix_has_all_classes_whichever_occur(evaluator, tmp_path):
    evaluator.process(torch.eye(4)[[1, 2]], torch.tensor([1, 1]))
    evaluator.evaluate()
    expected = [[0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.load(tmp_path / "cmat.pt", weights_only=True).tolist() == expected


def test_the_most_probable_classes_begin_with_the_prediction_also_among_equal_logits(evaluator):
    logits = torch.tensor([[0.0, 0, 0, 0], [1, 3, 2, 0], [0, 0, 0, 90]])
    evaluator.process(logits, torch.tensor([3, 0, 7]))  # 7 is no class
    (equal, other, _), expected = evaluator.top_predictions(), logits[1].softmax(0)
    assert equal[1][0] == evaluator._y_pred[0]
    assert (equal[0], equal[2]) == (0.25, [0.25] * 3)
    assert other[1] == [1, 2, 0]
    assert [other[0], *other[2]] == pytest.approx(expected[[0, 1, 2, 0]].tolist())
    assert evaluator.top_predictions()[2][0] == 0
    evaluator.reset()
    evaluator.process(torch.eye(2), torch.tensor([0, 1]))
    assert [top for _, top, _ in evaluator.top_predictions()] == [[0, 1], [1, 0]]


def test_a_third_party_subclass_may_set_the_counts():
    @EVALUATOR_REGISTRY.register(force=True)
    class Lenient(Classification):
        """Labels among the two best predictions are correct."""

        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg, lab2cname)
            self._correct = self._total = 0

        def process(self, mo, gt):
            self._correct += int((mo.topk(2).indices == gt[:, None]).any(dim=1).sum())
            self._total += len(gt)
            self._y_true.extend(gt.tolist())
            self._y_pred.extend(mo.argmax(dim=1).tolist())

    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Lenient"
    evaluator = build_evaluator(cfg, lab2cname={})
    evaluator.process(torch.tensor([[3.0, 2, 1], [3, 2, 1]]), torch.tensor([1, 2]))
    assert evaluator.evaluate()["accuracy"] == 50


def test_top_k_accuracy_counts_labels_among_the_first_k():
    output = torch.tensor([[5.0, 4.0, 3.0, 2.0], [2.0, 3.0, 4.0, 5.0], [9.0, 8.0, 1.0, 0.0]])
    target = torch.tensor([0, 2, 3])  # of rank 1, 2 and 4
    accuracies = [value.item() for value in compute_accuracy((output, None), target, topk=(1, 2, 3, 4))]
    assert accuracies == pytest.approx([100 / 3, 200 / 3, 200 / 3, 100])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused_but_an_excluded_class_is_not(evaluator, value):
    """An infinite logit makes the probabilities of its image, in predictions.csv, NaN."""
    logits, labels = torch.zeros(2, 4), torch.tensor([0, 1])
    logits[0, 3] = -torch.inf
    evaluator.process(logits, labels)
    logits[1, 2] = value
    with pytest.raises(NonFiniteError, match="some outputs are NaN or infinite"):
        evaluator.process(logits, labels)
