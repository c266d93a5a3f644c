"""Classification results, counted by hand."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
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


def process(evaluator, best_alone=False) -> None:
    """In batches of four and two."""
    for start, stop in pairwise((0, 4, 6)):
        predicted = torch.tensor(PREDICTED[start:stop])
        output = (torch.ones(len(predicted)), predicted) if best_alone else F.one_hot(predicted, 4).float()
        evaluator.process(output, torch.tensor(TRUE[start:stop]))


@pytest.mark.parametrize("best_alone", [False, True])
def test_all_figures(evaluator, best_alone):
    process(evaluator, best_alone)
    assert evaluator.evaluate() == pytest.approx(
        {
            "accuracy": 100 * 4 / 6,
            "error_rate": 100 * 2 / 6,
            "macro_f1": 100 * sum(F1) / 3,
            "perclass_accuracy": 100 * (2 / 3 + 1 / 2 + 1) / 3,
        }
    )


def test_the_first_figure_is_the_accuracy(evaluator):
    """The engine compares epochs by it."""
    process(evaluator)
    assert next(iter(evaluator.evaluate())) == "accuracy"


def test_after_a_reset_nothing_is_left_of_what_came_before(evaluator):
    evaluator.process(torch.eye(4), torch.tensor([3, 3, 3, 3]))
    evaluator.evaluate()
    evaluator.reset()
    process(evaluator)
    results = evaluator.evaluate()
    assert (results["accuracy"], results["macro_f1"]) == pytest.approx((100 * 4 / 6, 100 * sum(F1) / 3))
    assert results["perclass_accuracy"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 1) / 3)


def test_rows_of_the_confusion_matrix_are_true_classes(evaluator, tmp_path):
    process(evaluator)
    evaluator.evaluate()
    expected = [[2 / 3, 0, 0, 1 / 3], [0, 1 / 2, 1 / 2, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.load(tmp_path / "cmat.pt", weights_only=True).tolist() == [pytest.approx(row) for row in expected]


def test_the_lines_of_classes(evaluator, capsys):
    process(evaluator)
    evaluator.evaluate()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("* class")]
    assert lines == [
        "* class: 0 (a)\ttotal: 3\tcorrect: 2\tacc: 66.67%",
        "* class: 1 (b)\ttotal: 2\tcorrect: 1\tacc: 50.00%",
        "* class: 2 (c)\ttotal: 1\tcorrect: 1\tacc: 100.00%",
    ]


def test_accuracy_among_the_first_k():
    output = torch.tensor([[5.0, 4.0, 3.0, 2.0], [2.0, 3.0, 4.0, 5.0], [9.0, 8.0, 1.0, 0.0]])
    target = torch.tensor([0, 2, 3])  # of rank 1, 2 and 4
    found = [value.item() for value in compute_accuracy(output, target, topk=(1, 2, 3, 4))]
    assert found == pytest.approx([100 / 3, 200 / 3, 200 / 3, 100])
