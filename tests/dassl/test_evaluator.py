"""Classification results, counted by hand."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, build_evaluator
from dassl.metrics import compute_accuracy

# Class 3 is none of the images', but is taken for one of them. Right are 4 of 6; of the classes 2/3, 1/2 and 1/1.
TRUE = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 0, 3, 1, 2, 2]
# 2 * right / (images of the class + images taken for it), over the classes that occur
F1 = (2 * 2 / (3 + 2), 2 * 1 / (2 + 1), 2 * 1 / (1 + 2))


@pytest.fixture
def evaluator(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    return build_evaluator(cfg, lab2cname=dict(enumerate("abcd")))


def process(evaluator) -> None:
    """In batches of four and two."""
    for start, stop in pairwise((0, 4, 6)):
        predicted = torch.tensor(PREDICTED[start:stop])
        evaluator.process(F.one_hot(predicted, 4).float(), torch.tensor(TRUE[start:stop]))


def test_all_figures(evaluator):
    process(evaluator)
    results = evaluator.evaluate()
    assert next(iter(results)) == "accuracy"  # by which the engine compares epochs
    assert results == pytest.approx(
        {
            "accuracy": 100 * 4 / 6,
            "error_rate": 100 * 2 / 6,
            "macro_f1": 100 * sum(F1) / 3,
            "perclass_accuracy": 100 * (2 / 3 + 1 / 2 + 1) / 3,
        }
    )


def test_after_a_reset_nothing_is_left_of_what_came_before(evaluator):
    evaluator.process(torch.eye(4), torch.tensor([3, 3, 3, 3]))
    evaluator.evaluate()
    evaluator.reset()
    process(evaluator)
    assert (evaluator._correct, evaluator._total) == (4, 6)  # as the field reads them
    assert evaluator._per_class_res == {0: [1, 1, 0], 1: [1, 0], 2: [1]}
    results = evaluator.evaluate()
    assert (results["accuracy"], results["macro_f1"]) == pytest.approx((100 * 4 / 6, 100 * sum(F1) / 3))
    assert results["perclass_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)


def test_rows_of_the_confusion_matrix_are_true_classes(evaluator, tmp_path):
    process(evaluator)
    evaluator.evaluate()
    expected = [[2 / 3, 0, 0, 1 / 3], [0, 1 / 2, 1 / 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.load(tmp_path / "cmat.pt", weights_only=True).tolist() == [pytest.approx(row) for row in expected]


def test_an_evaluator_of_the_field_that_counts_by_itself():
    @EVALUATOR_REGISTRY.register(force=True)
    class Lenient(Classification):
        """What is in the two best counts."""

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


def test_accuracy_among_the_first_k():
    output = torch.tensor([[5.0, 4.0, 3.0, 2.0], [2.0, 3.0, 4.0, 5.0], [9.0, 8.0, 1.0, 0.0]])
    target = torch.tensor([0, 2, 3])  # of rank 1, 2 and 4
    found = [value.item() for value in compute_accuracy((output, None), target, topk=(1, 2, 3, 4))]
    assert found == pytest.approx([100 / 3, 200 / 3, 200 / 3, 100])
