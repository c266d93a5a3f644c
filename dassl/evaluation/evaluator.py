"""The base class of evaluators, and that of classification: accuracy, macro F1, per class, confusion matrix."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.log_format import format_class_result, format_result
from dassl.utils import NonFiniteError, UserError, atomic_write

from .build import EVALUATOR_REGISTRY

TOP_CLASSES = 3  # most probable classes of each image in ``top_predictions``


class EvaluatorBase:
    """An evaluator: call ``reset``, then ``process`` for each batch, then ``evaluate``."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Any, gt: Any) -> None:
        """Add a batch: the model's output ``mo`` and the ground truth ``gt``, of the types that a subclass defines."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the metrics and return them; the first one serves model selection and result tables."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1, all in percent (macro F1 over the classes that occur in the test set).

    Third-party subclasses read or set ``_correct``, ``_total``, ``_per_class_res`` (label -> for each image 1 or 0),
    ``_y_true`` and ``_y_pred``.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **_):
        """``lab2cname``: class names by label, printed in the results of each class (default: the label)."""
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self._batches: list[tuple[torch.Tensor, ...]] = []  # here too: a subclass may replace ``reset``
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._correct = self._total = 0
        self._per_class_res: dict[int, list[int]] = defaultdict(list)
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        self._batches = []

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Add a batch: logits (batch, classes) and labels (batch,); NonFiniteError for a logit of NaN or infinity."""
        if mo.isnan().any() or mo.isposinf().any():  # -infinity excludes a class
            raise NonFiniteError("some outputs are NaN or infinite: the model has diverged, or is too imprecise")
        best = mo.argmax(dim=1)
        predicted, true = best.tolist(), gt.tolist()
        for label, prediction in zip(true, predicted, strict=True):
            is_correct = int(label == prediction)
            self._per_class_res[label].append(is_correct)
            self._correct += is_correct
        self._total += len(true)
        self._y_pred.extend(predicted)
        self._y_true.extend(true)
        self._batches.append(_most_probable(mo.float(), best, gt.to(mo.device)))

    def top_predictions(self) -> list[tuple[float, list[int], list[float]]]:
        """Return for each image the probability of its label, its most probable classes, and their probabilities.

        There are TOP_CLASSES classes, or all if there are fewer. The images are in the order of ``process``.
        """
        return [image for batch in self._batches for image in zip(*(t.tolist() for t in batch), strict=True)]

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return accuracy, error_rate, macro_f1 and, with PER_CLASS_RESULT, perclass_accuracy, in percent.

        With COMPUTE_CMAT, save the confusion matrix. Raise ``UserError`` if no image was processed.
        """
        if not self._total:
            raise UserError("there is nothing to evaluate: the test set is empty")
        total, correct = self._total, self._correct
        # Not by scikit-learn, whose import takes longer than a short run's training.
        true, predicted = Counter(self._y_true), Counter(self._y_pred)
        hits = Counter(label for label, guess in zip(self._y_true, self._y_pred, strict=True) if label == guess)
        macro_f1 = 100 * np.mean([2 * hits[label] / (true[label] + predicted[label]) for label in sorted(true)])
        print(format_result(total, correct, macro_f1))
        accuracy = 100.0 * correct / total
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=float(macro_f1))
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._confusion_matrix()
        return results

    def _per_class(self) -> float:
        """Print the accuracy of each class in percent; return the mean over the classes that occur in the test set."""
        print("=> per-class result")
        results = self._per_class_res
        for label, hits in sorted(results.items()):
            print(format_class_result(label, self._lab2cname.get(label, str(label)), len(hits), sum(hits)))
        average = sum(100 * sum(hits) / len(hits) for hits in results.values()) / len(results)
        print(f"* average: {average:.2f}%")
        return average

    def _confusion_matrix(self) -> None:
        """Save the confusion matrix (classes, classes) to ``cmat.pt`` in OUTPUT_DIR.

        Rows are true, columns predicted classes. Each row sums to 1; that of a class without test images is 0.
        """
        from sklearn.metrics import confusion_matrix

        path = Path(self.cfg.OUTPUT_DIR, "cmat.pt")
        classes = range(1 + max(chain(self._y_true, self._y_pred, self._lab2cname)))
        matrix = confusion_matrix(self._y_true, self._y_pred, labels=classes, normalize="true")
        with atomic_write(path, "wb") as file:
            torch.save(torch.from_numpy(matrix), file)
        print(f"Confusion matrix is saved to {path}")


def _most_probable(
    logits: torch.Tensor, best: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the labels' probabilities (n,), the most probable classes (n, k) and their probabilities (n, k).

    ``logits`` are (n, classes). ``best`` (n,) comes first also among equal logits. A label that is no class has
    probability 0.
    """
    classes = logits.shape[1]
    probabilities = F.pad(logits.softmax(dim=1), (0, 1))
    top = logits.scatter(1, best[:, None], torch.inf).topk(min(TOP_CLASSES, classes)).indices
    label_probabilities = probabilities.gather(1, labels.clamp(max=classes)[:, None])[:, 0]
    return label_probabilities.cpu(), top.cpu(), probabilities.gather(1, top).cpu()
