"""Writing results: tables for people, or JSON lines for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dassl.utils import UserError

if TYPE_CHECKING:
    import torch

MAX_PATH_WIDTH, MAX_NAME_WIDTH = 60, 30  # columns, in letters: a row with one class fits on a line of 120 letters


def write_result(record: dict, text: str, as_json: bool) -> None:
    """Print the result for one image: ``record`` as a line of JSON if ``as_json``, else ``text``.

    The first entry of ``record`` is the image's path.

    Raises:
        UserError: a number in ``record`` is NaN or infinite.
    """
    is_ascii = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"  # other consoles lack some letters
    try:
        line = json.dumps(record, ensure_ascii=is_ascii, allow_nan=False)
    except ValueError as error:
        path = next(iter(record.values()))
        raise UserError(f"the result for {path} is NaN or infinite: the model cannot compute it") from error
    print(line if as_json else text, flush=True)


class PredictionWriter:
    """Writes the most probable classes: a table for a single image (or video), a row each for several."""

    def __init__(self, paths: list[str], classnames: Sequence[str], args: argparse.Namespace, kind: str = "image"):
        """Print the header of the rows if there are several ``paths`` and ``args.json`` is False.

        ``paths`` are those of all images or videos (``kind``: "image", "video"), ``classnames`` are in label order, and
        ``args.top_k`` classes are shown of each.
        """
        self.classnames, self.args, self.kind, self.is_single = classnames, args, kind, len(paths) == 1
        # The widths follow from all paths, since rows are printed one by one.
        self.path_width = max(min(max(map(len, paths)), MAX_PATH_WIDTH), len(kind))
        self.name_width = max(min(max(map(len, classnames)), MAX_NAME_WIDTH), len("class"))
        if not self.is_single and not args.json:
            print(
                self._format_row(kind, "probability", "class", "then" if min(args.top_k, len(classnames)) > 1 else "")
            )

    def write(self, path: str, logits: torch.Tensor, logit_scale: float | None) -> list[dict]:
        """Print and return the ``args.top_k`` most probable classes, in order, from ``logits`` (classes,) on the CPU.

        For each: class, probability, logit; and cosine, the logit divided by ``logit_scale``, unless that is None.
        """
        scores = zip(self.classnames, logits.softmax(-1).tolist(), logits.tolist(), strict=True)
        predictions: list[dict] = []
        for name, probability, logit in sorted(scores, key=lambda score: -score[1])[: self.args.top_k]:
            cosine = {} if logit_scale is None else {"cosine": logit / logit_scale}
            predictions.append({"class": name, "probability": probability, "logit": logit, **cosine})
        write_result({self.kind: path, "predictions": predictions}, self._format(path, predictions), self.args.json)
        return predictions

    def _format(self, path: str, predictions: list[dict]) -> str:
        """Return the predictions of an image as text: a table for a single image, else one row."""
        percentages = [(entry["class"], f"{entry['probability']:.2%}") for entry in predictions]
        if self.is_single:
            from tabulate import tabulate

            return tabulate(percentages, ["class", "probability"], disable_numparse=True, colalign=["left", "right"])
        (name, probability), *lower = percentages
        return self._format_row(path, probability, name, ", ".join(f"{name} {value}" for name, value in lower))

    def _format_row(self, path: str, probability: str, name: str, lower: str) -> str:
        """Return the values as one line of aligned columns; ``lower`` is the text for the less probable classes."""
        return f"{path:{self.path_width}}  {probability:>11}  {name:{self.name_width}}  {lower}".rstrip()
