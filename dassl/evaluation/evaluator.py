"""Classification results: accuracy, macro F1, per class, confusion matrix."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from pathlib import Path

import torch
from yacs.config import CfgNode

from dassl.log_format import format_class_result, format_result
from dassl.utils import NonFiniteError, UserError, atomic_write

from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """``reset``, then ``process`` each batch, then ``evaluate``."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take in a batch: the model's output and the ground truth."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the results and return them; the first is the one that counts (model selection, tables)."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1, all in percent (macro F1 over the classes that occur in the test set).

    Evaluators of the field extend it and read, or keep, these counts themselves: ``_correct``, ``_total``,
    ``_per_class_res`` (label -> a 1 or 0 an image), ``_y_true``, ``_y_pred``.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **_):
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        self._correct = self._total = 0
        self._per_class_res: dict[int, list[int]] = defaultdict(list)
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take in a batch: logits (batch, classes) and labels (batch,).

        Raises:
            UserError: logits are not numbers.
        """
        if mo.isnan().any():
            raise NonFiniteError(
                "some outputs are not numbers (NaN): the model has diverged, or its precision is too low"
            )
        predicted, true = mo.argmax(dim=1).tolist(), gt.tolist()
        for label, guess in zip(true, predicted, strict=True):
            hit = int(label == guess)
            self._per_class_res[label].append(hit)
            self._correct += hit
        self._total += len(true)
        self._y_pred.extend(predicted)
        self._y_true.extend(true)

    def evaluate(self) -> OrderedDict[str, float]:
        if not self._total:
            raise UserError("there is nothing to evaluate: the test set is empty")
        from sklearn.metrics import f1_score  # seconds to import

        total, correct = self._total, self._correct
        macro_f1 = 100 * f1_score(self._y_true, self._y_pred, average="macro", labels=sorted(set(self._y_true)))
        print(format_result(total, correct, macro_f1))
        accuracy = 100.0 * correct / total
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=float(macro_f1))
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._confusion_matrix()
        return results

    def _per_class(self) -> float:
        """Print each class's accuracy; returns their average."""
        print("=> per-class result")
        hits = self._per_class_res
        for label, hit in sorted(hits.items()):
            print(format_class_result(label, self._lab2cname.get(label, str(label)), len(hit), sum(hit)))
        average = sum(100 * sum(hit) / len(hit) for hit in hits.values()) / len(hits)
        print(f"* average: {average:.2f}%")
        return average

    def _confusion_matrix(self) -> None:
        """Save the confusion matrix, each row divided by its sum, as a tensor (classes, classes)."""
        from sklearn.metrics import confusion_matrix

        path = Path(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_write(path, "wb") as file:
            torch.save(torch.from_numpy(confusion_matrix(self._y_true, self._y_pred, normalize="true")), file)
        print(f"Confusion matrix is saved to {path}")
