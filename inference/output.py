"""How results are written: for people, or as JSON lines for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

MAX_PATH_WIDTH, MAX_NAME_WIDTH = 60, 30  # longest that rows are aligned for


def write_result(record: dict, text: str, as_json: bool) -> None:
    """Print ``record``, the result for one image, as a line of JSON, or ``text``, which says the same to people."""
    everywhere = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"  # letters that not every console has
    print(json.dumps(record, ensure_ascii=everywhere) if as_json else text, flush=True)


class PredictionWriter:
    """The most probable classes: for people a table for the only image (or video), a row each for several."""

    def __init__(self, paths: list[str], classnames: Sequence[str], args: argparse.Namespace, what: str = "image"):
        self.classnames, self.args, self.what, self.alone = classnames, args, what, len(paths) == 1
        # The rows are aligned, though they are written as they come.
        self.path_width = max(min(max(map(len, paths)), MAX_PATH_WIDTH), len(what))
        self.name_width = max(min(max(map(len, classnames)), MAX_NAME_WIDTH), len("class"))
        if not self.alone and not args.json:
            print(self._row(what, "probability", "class", "then" if min(args.top_k, len(classnames)) > 1 else ""))

    def write(self, path: str, probabilities: list[float]) -> list[dict]:
        """Write the result for one image; return its most probable classes, sorted."""
        ranked = sorted(zip(self.classnames, probabilities, strict=True), key=lambda pair: -pair[1])
        predictions = [{"class": name, "probability": share} for name, share in ranked[: self.args.top_k]]
        write_result({self.what: path, "predictions": predictions}, self._text(path, predictions), self.args.json)
        return predictions

    def _text(self, path: str, predictions: list[dict]) -> str:
        shares = [(entry["class"], f"{entry['probability']:.2%}") for entry in predictions]
        if self.alone:
            from tabulate import tabulate

            return tabulate(shares, ["class", "probability"], disable_numparse=True, colalign=["left", "right"])
        (first, probability), *others = shares
        return self._row(path, probability, first, ", ".join(f"{name} {share}" for name, share in others))

    def _row(self, path: str, probability: str, name: str, others: str) -> str:
        return f"{path:{self.path_width}}  {probability:>11}  {name:{self.name_width}}  {others}".rstrip()
