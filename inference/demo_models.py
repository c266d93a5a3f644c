"""The models that the demo compares: zero-shot CLIP, and those of runs; examples of the runs' test images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from dassl.engine.record import PREDICTIONS_FILE
from dassl.utils import Decoding, UserError
from vlm.clip.load import find_language, load_cached_clip
from vlm.text.templates import DEFAULT_TEMPLATES, list_templates

from .classifier import Classifier, build_from_run, build_zero_shot
from .classify import DEFAULT_BACKBONE, classify_images
from .output import rank_classes
from .trained_run import find_run_folder, load_run_cfg, read_record_if_any

MAX_CLASSIFIERS = 8  # kept for the latest classes and templates; that of a fine-tuned CLIP holds a copy of it
BATCH_SIZE = 32  # images, as in predict.py classify
NUM_EXAMPLES = 6  # images: two rows


@dataclass(frozen=True)
class ComparedModel:
    """Zero-shot CLIP (``source`` None), or the model of the run or learned prompt at ``source``."""

    title: str
    facts: str  # Markdown
    source: Path | None
    backbone: str
    weights: str
    classnames: tuple[str, ...] = ()  # those that the run learned

    def build(self, classnames: Sequence[str], templates: Sequence[str]) -> Classifier:
        """Return the classifier for ``classnames``; only zero-shot CLIP uses ``templates``.

        Classes in another order than the run's are put into that: some methods learn weights for each class.
        """
        names = self.classnames if {*classnames} == {*self.classnames} else tuple(classnames)
        templates = () if self.source else tuple(templates)
        return _build_classifier(self.source, self.backbone, self.weights, names, templates)

    def classify(
        self, paths: list[str], classnames: Sequence[str], templates: Sequence[str], with_thumbnails: bool = False
    ) -> Iterator[tuple]:
        """Yield (path, result) of each image: (:func:`rank_classes`, thumbnail or None), or its :class:`UserError`."""
        classifier = self.build(classnames, templates)
        decoding = classifier.decoding or Decoding(orientation="exif")  # the default of predict.py
        for path, result in classify_images(classifier, paths, decoding, BATCH_SIZE, with_thumbnails):
            if not isinstance(result, UserError):
                result = rank_classes(classifier.classnames, result[0], classifier.logit_scale), result[1]
            yield path, result


@lru_cache(maxsize=MAX_CLASSIFIERS)
def _build_classifier(
    source: Path | None, backbone: str, weights: str, classnames: tuple[str, ...], templates: tuple[str, ...]
) -> Classifier:
    """Return the classifier of a :class:`ComparedModel`; arguments as there."""
    with torch.random.fork_rng(devices=[]):  # load_cached_clip caches by the random state
        if source is None:
            return build_zero_shot(classnames, templates, backbone, weights)
        has_config = find_run_folder(source) is not None
        return build_from_run(source, classnames, None, weights, "" if has_config else backbone)


def load_models(
    sources: Sequence[str], backbone: str | None, weights: str, classnames: Sequence[str], texts: dict[str, str]
) -> tuple[list[ComparedModel], list[str]]:
    """Return zero-shot CLIP and the models at ``sources``, loaded, and the templates to begin with.

    The other arguments are those of the command line; ``texts`` are the page's.

    Raises:
        UserError: the runs have different CLIPs, or as :func:`inference.trained_run.load_trainer`.
    """
    runs = [_describe_run(Path(source), backbone or "", weights, texts) for source in sources]
    clips = {run.backbone: run for run in runs} | ({backbone: None} if backbone else {})
    if len(clips) > 1 or len({run.weights for run in runs}) > 1:
        names = ", ".join(sorted({*clips, *(run.weights for run in runs if run.weights)}))
        raise UserError(f"different CLIPs ({names}): zero-shot CLIP stands beside all runs, so name runs of one CLIP")
    name, weights = (runs[0].backbone, runs[0].weights) if runs else (backbone or DEFAULT_BACKBONE, weights)
    facts = texts["zero_shot_facts"].format(backbone=weights or name)
    models = [ComparedModel(texts["zero_shot"], facts, None, name, weights), *_number_equal_titles(runs)]
    folder = find_run_folder(runs[0].source) if runs and runs[0].source else None
    templates = list_templates(load_run_cfg(folder).DATASET.TEMPLATE) if folder else []
    for model in models:
        print(f"Loading {model.title} ({model.source or weights or name})", file=sys.stderr)
        if model.source:
            model.build(model.classnames or classnames, ())
        else:
            with torch.random.fork_rng(devices=[]):
                load_cached_clip(name, weights, "fp32", "cuda" if torch.cuda.is_available() else "cpu")
    return models, templates or [DEFAULT_TEMPLATES[find_language(name)]]


def _number_equal_titles(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return ``models``; the titles of several that are equal, such as of two lengths of context, end in numbers."""
    titles = [model.title for model in models]
    numbers = [titles[: index + 1].count(title) for index, title in enumerate(titles)]
    return [
        replace(model, title=f"{model.title} ({number})") if titles.count(model.title) > 1 else model
        for model, number in zip(models, numbers, strict=True)
    ]


def _describe_run(source: Path, backbone: str, weights: str, texts: dict[str, str]) -> ComparedModel:
    """Return the model at ``source``, not loaded; ``backbone`` and ``weights`` are of a learned prompt alone."""
    folder = find_run_folder(source)
    if folder is None and (backbone or weights):
        facts = texts["prompt_facts"].format(backbone=weights or backbone)
        return ComparedModel(texts["prompt"].format(name=source.name), facts, source, backbone, weights)
    cfg, record = load_run_cfg(folder or source), read_record_if_any(folder or source)
    node, weights = cfg.MODEL.BACKBONE, weights or cfg.MODEL.BACKBONE.WEIGHTS
    title, method = texts["run"], record.get("method") or cfg.TRAINER.NAME
    parts = [texts["run_facts"].format(backbone=weights or node.NAME, count=record.get("trainable_parameters", 0))]
    if "accuracy" in record:
        parts.append(texts["accuracy"].format(**{key: record[key] for key in ("accuracy", "total", "split")}))
    parts.append(f"`{source}`")
    title = title.format(method=method, shots=cfg.DATASET.NUM_SHOTS, seed=cfg.SEED)
    classnames = tuple(str(name) for name in record.get("classnames", ()))
    return ComparedModel(title, "  \n".join(parts), source, node.NAME, weights, classnames)


def find_examples(models: Sequence[ComparedModel]) -> list[tuple[Path, str]]:
    """Return (path, class) of a few evenly spaced test images of the first run that has some; [] if there are none."""
    for model in models:
        folder = find_run_folder(model.source) if model.source else None
        if folder is None or not (folder / PREDICTIONS_FILE).is_file():
            continue
        with (folder / PREDICTIONS_FILE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        root, count = Path(load_run_cfg(folder).DATASET.ROOT).expanduser(), min(NUM_EXAMPLES, len(rows))
        chosen = [rows[(2 * number + 1) * len(rows) // (2 * count)] for number in range(count)]
        examples = [(root / row["path"], row["class"]) for row in chosen if (root / row["path"]).is_file()]
        if examples:
            return examples
    return []
