"""Finished runs as tables see them: their records, the settings that decide a result, and how two runs differ."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from dassl.config import get_cfg_default, to_dict
from dassl.config.defaults import UNUSED_KEYS
from dassl.config.merge import flatten
from dassl.config.run_config import CONFIG_FILE, RESUMABLE_KEYS
from dassl.data.decoding import ORIGINAL
from dassl.engine.lock import exclusive_lock
from dassl.engine.record import RECORD_FILE, is_evaluation, read_record
from dassl.utils import UserError, read_json, write_json

TRIALS_FILE = "trials.json"  # in a sweep's folder: the folders of all runs that sweeps into it were asked for
# The method and its group, by trainer, of records that are older than these entries.
OLD_METHODS = {"ZeroshotCLIP": ("Zero-shot CLIP", "training-free"), "CLIPAdapter": ("CLIP-Adapter", "features")}
OLD_METHODS |= {"ZeroshotCLIP2": ("Zero-shot ensemble", "training-free"), "LinearProbe": ("Linear probe", "features")}
OLD_METHODS |= {"TipAdapter": ("Tip-Adapter", "training-free"), "TipAdapterF": ("Tip-Adapter-F", "features")}
OLD_METHODS |= {name: (name, "prompts") for name in ("CoOp", "CoCoOp")} | {"CLIPFineTune": ("CLIPFineTune", "towers")}
UNTRAINED = ("ZeroshotCLIP", "ZeroshotCLIP2")  # trainers of old records, without the entry "models", that train nothing
# Config keys, or the beginnings of keys, that do not decide a result. Files count by their content.
IGNORED_KEYS: tuple[str, ...] = tuple(key for key in RESUMABLE_KEYS if key != "TEST.")
IGNORED_KEYS += ("SEED", "USE_CUDA", "MODEL.BACKBONE.WEIGHTS", "MODEL.INIT_WEIGHTS", *UNUSED_KEYS)
IGNORED_KEYS += ("TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT", "TEST.LOGITS_GB")
IGNORED_KEYS += ("DATASET.BASE_CLASSES", "DATASET.CLASSNAMES", "PROTOCOL")  # the last is in COMPARED
# Keys that do not decide the result of a method that trains nothing.
TRAINING_KEYS: tuple[str, ...] = (
    "OPTIM.",
    "TRAIN.",
    "DATALOADER.",
    "DATASET.NUM_SHOTS",
    "DATASET.FEWSHOT_FILE",
    "DATASET.VAL_IS_TEST",
    "FEATURES.VIEWS",
)
TRAINING_KEYS += ("TEST.FINAL_MODEL", "INPUT.CROP_PADDING", "INPUT.RRCROP_SCALE", "INPUT.CUTOUT_", "INPUT.GN_")
TRAINING_KEYS += ("INPUT.RANDAUGMENT_", "INPUT.COLORJITTER_", "INPUT.RGS_P", "INPUT.GB_")
TEST_TRANSFORMS = ("normalize", "instance_norm")  # the INPUT.TRANSFORMS that apply to test images
# What two results must share to be compared, by the name in notes.
COMPARED: tuple[str, ...] = (
    "data set",
    "test images",
    "test image sizes",
    "test image files",
    "white level",
    "orientation",
    "class names",
    "weights",
    "shared captions",
)
# Of runs that train. With few shots the images of which they are drawn, else the training images themselves.
COMPARED += ("training images", "all training images", "all training image sizes", "protocol")
RESULTS = ("accuracy", "correct", "macro_f1")  # two records of one seed with these equal count once
REPETITIONS: tuple[Literal["seed", "model"], ...] = ("seed", "model")  # what no two runs of a cell share
ARITHMETIC = "sums"  # what their last bits depend on: the GPU, or the mode of MKL
# In MKL's strict mode, the end of machine.sums where a method trains convolutions or layer norms. Other methods' sums
# do not depend on the threads, and compare with these all the same.
STRICT_THREADS = re.compile(r"(?<=STRICT), \d+ threads?$")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its record."""

    folder: Path
    record: dict

    @property
    def accuracy(self) -> float:
        """Accuracy on the images of ``split``, in percent."""
        return self.record["accuracy"]

    @property
    def seed(self) -> int:
        """The seed that the record has."""
        return self.record["seed"]

    @property
    def method(self) -> str:
        """The name of the method in tables."""
        trainer = self.record["trainer"]
        return self.record.get("method") or OLD_METHODS.get(trainer, (trainer, ""))[0]

    @property
    def group(self) -> str:
        """The group of the method in tables; "" for another than GROUPS of ``studies/tables/study.py`` names."""
        return self.record.get("group", OLD_METHODS.get(self.record["trainer"], ("", ""))[1])

    @property
    def is_one_draw(self) -> bool:
        """Whether the method trained on shots that are the same for each seed."""
        return self.is_trained and _get(self.record, "few_shot_split", "draws") == 1

    @property
    def is_trained(self) -> bool:
        """Whether the method trains a model, here or, if ``is_evaluation``, in another run."""
        default = [] if self.record["trainer"] in UNTRAINED else ["model"]
        return bool(self.record.get("models", default))

    @property
    def is_evaluation(self) -> bool:
        """Whether the run only evaluated a model."""
        return is_evaluation(self.record)

    @property
    def model_files(self) -> list[tuple[str, str]]:
        """The path and the SHA-256 of each checkpoint file of the model that an evaluation loaded, if recorded."""
        if not (self.is_trained and self.is_evaluation):
            return []
        files = [(_get(entry, "file"), _get(entry, "sha256")) for entry in self.record.get("started_from") or []]
        files = [(str(file), str(sha256)) for file, sha256 in files if file and sha256]
        # MODEL.INIT_WEIGHTS comes first. The files of --model-dir replace its parameters.
        return files[1:] or files if self.config.get("MODEL.INIT_WEIGHTS") else files

    @property
    def model(self) -> object:
        """The checksums of the model that an evaluation loaded; of another run, its folder."""
        return tuple(sha256 for _, sha256 in self.model_files) or self.folder

    @property
    def config_name(self) -> str:
        """Name of the method's config file without its suffix; "" without one."""
        words = [word for text in self.record.get("command", []) for word in str(text).split("=", 1)]
        return next((Path(path).stem for flag, path in pairwise(words) if flag == "--config-file"), "")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config, by dotted key."""
        return dict(flatten(self.record["config"]))

    @property
    def shots(self) -> int:
        """Training images of each class that were asked for; 0: all of them.

        With DATASET.FEWSHOT_FILE, the images of the largest class; 0 for an evaluation, which trains on none.
        """
        if self.config.get("DATASET.FEWSHOT_FILE") and self.train_images_per_class:
            return 0 if self.is_evaluation else self.train_images_per_class[1]
        shots = self.config.get("DATASET.NUM_SHOTS")
        return max(shots, 0) if isinstance(shots, int) else 0

    @property
    def train_images_per_class(self) -> tuple[int, int] | None:
        """The fewest and the most training images of a class; None if the record does not say."""
        counts = self.record.get("train_images_per_class")
        if not isinstance(counts, list) or [type(count) for count in counts] != [int, int]:
            return None
        return counts[0], counts[1]

    @cached_property
    def facts(self) -> dict[str, str]:
        """Short texts of what COMPARED and ARITHMETIC name; what the record does not say is left out."""
        weights, classnames = self.record.get("weights", {}), self.record.get("classnames", [])
        backbone = weights.get("backbone") or "stored features"
        split = _get(self.record, "splits", str(self.record.get("split", "test"))) or {}
        names = hashlib.sha256(repr(classnames).encode(errors="surrogatepass")).hexdigest()
        facts = {
            "data set": self.record.get("dataset"),
            "test images": _shorten(_get(split, "sha256")),
            "test image sizes": _shorten(_get(split, "sizes")),
            "test image files": _shorten(_get(split, "content")),
            **self._describe_decoding(),
            "shared captions": self._count_shared_captions(),
            "class names": f"{len(classnames):,} names, {_shorten(names)}" if classnames else None,
            "weights": f"{backbone}, {_shorten(weights.get('sha256'))}" if weights else None,
            **(self._describe_training_images() if self.is_trained and not self.is_evaluation else {}),
            "protocol": self.config.get("PROTOCOL", "validation") if self.is_trained and not self.is_evaluation else "",
            ARITHMETIC: STRICT_THREADS.sub("", str(_get(self.record, "machine", "sums") or "not recorded")),
        }
        return {key: str(value) for key, value in facts.items() if value}

    def _describe_decoding(self) -> dict[str, str]:
        """Return the settings on the decoding of images by the names in COMPARED.

        A setting other than the original's counts if it changed images of the run: another seed may have drawn shots
        that it does not change. Records without the keys have the original's.
        """
        names = [str(self.record.get("split", "test"))]
        names += ["train_x", "train_u", "val"] if self.is_trained and not self.is_evaluation else []
        changes = [_get(self.record, "splits", name, "decoding") or {} for name in names]
        white_level = self.config.get("INPUT.WHITE_LEVEL", ORIGINAL.white_level)
        orientation = self.config.get("INPUT.ORIENTATION", ORIGINAL.orientation)
        is_scaled = white_level == ORIGINAL.white_level or any("scaled" in entry for entry in changes)
        is_turned = orientation == ORIGINAL.orientation or any("turned" in entry for entry in changes)
        return {"white level": str(white_level) if is_scaled else "", "orientation": orientation if is_turned else ""}

    def _count_shared_captions(self) -> str:
        """Return how many captions other images have, too; "" for a run that is not evaluated by retrieval.

        Earlier versions, which record none, counted such a caption as wrong for its other images.
        """
        count = _get(self.record, "shared_captions", str(self.record.get("split", "test")))
        return f"{count or 'none recorded'}" if self.config.get("TEST.EVALUATOR") == "Retrieval" else ""

    def _describe_training_images(self) -> dict[str, str]:
        """Return the facts on the training images by the names in COMPARED."""
        if not (few_shots := self.record.get("few_shot_split")):
            images = _get(self.record, "splits", "train_x")
            checksums = (_shorten(_get(images, key)) for key in ("sha256", "sizes"))
            return dict(zip(("all training images", "all training image sizes"), checksums, strict=True))
        # The fingerprint of DATASET.FEWSHOT_FILE is that of the file, which may differ between seeds.
        fingerprint = None if self.config.get("DATASET.FEWSHOT_FILE") else _get(few_shots, "fingerprint")
        return {"training images": _shorten(_get(few_shots, "pool") or fingerprint)}

    @property
    def changed_labels(self) -> int:
        """Training images to which DATASET.FEWSHOT_FILE gives another label than the data set; 0 without such a file.

        An evaluation trains on none.
        """
        changed = _get(self.record, "few_shot_split", "changed_labels")
        return changed if isinstance(changed, int) and self.is_trained and not self.is_evaluation else 0

    @property
    def few_shot_file(self) -> str:
        """What DATASET.FEWSHOT_FILE holds, in words; "" without one. Each seed may have a file, with its own draw."""
        if not self.config.get("DATASET.FEWSHOT_FILE") or self.is_evaluation:
            return ""
        fewest, most = self.train_images_per_class or ("?", "?")
        images = _get(self.record, "splits", "train_x", "images")
        changed = _get(self.record, "few_shot_split", "changed_labels")
        labels = "an unknown number of" if changed is None else changed
        return f"{images} images, {fewest} to {most} a class, {labels} changed labels"

    @cached_property
    def settings(self) -> dict[str, str]:
        """The config keys that decide the result, as text, and what COMPARED names."""
        config = {key: value for key, value in self.config.items() if not key.startswith(IGNORED_KEYS)}
        for key in [key for key, value in config.items() if key.endswith(".CTX_INIT") and value]:
            config.pop(f"{key.removesuffix('.CTX_INIT')}.N_CTX", None)  # the words set the number of tokens
        config["DATASET.NUM_SHOTS"] = self.shots or "all"  # each number below 1 means all images
        # Files count by their content. Without the entry of the record, the method does not read the descriptions.
        config["DATASET.FEWSHOT_FILE"] = self.few_shot_file
        config["DATASET.DESCRIPTIONS"] = _shorten(_get(self.record, "descriptions", "sha256"))
        if not self.is_trained:
            config = {key: value for key, value in config.items() if not key.startswith(TRAINING_KEYS)}
            if isinstance(names := config.get("INPUT.TRANSFORMS"), list):
                config["INPUT.TRANSFORMS"] = [name for name in names if name in TEST_TRANSFORMS]
        if self.config.get("MODEL.INIT_WEIGHTS") and (started_from := self.record.get("started_from")):
            config["initial weights"] = _shorten(_get(started_from[0], "sha256"))  # this file comes first
        data = {key: value for key, value in self.facts.items() if key in COMPARED}
        return {key: _to_text(value) for key, value in config.items()} | data


def _get(node: object, *keys: str) -> Any:
    """Return the value at a path of keys in nested dicts; None if it is not there."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _shorten(checksum: object) -> str:
    """Return the beginning of a checksum, for notes; "" for None."""
    return f"SHA-256 {str(checksum)[:16]}…" if checksum else ""


def _to_text(value: object) -> str:
    """Return the value of a config key as text: ``none`` for an empty one."""
    return "none" if value in ("", None, [], ()) else str(value)


def read_run(folder: Path) -> Run:
    """Return the finished run in ``folder``; ``UserError`` if its record is damaged."""
    record = read_record(folder)
    accuracy = record.get("accuracy")
    is_percent = accuracy is None or (type(accuracy) in (int, float) and 0 <= accuracy <= 100)
    types = {"trainer": str, "seed": int, "config": dict}
    wrong = [key for key, type_ in types.items() if type(record.get(key)) is not type_]
    if wrong := wrong + [key for key in ("method", "group") if type(record.get(key, "")) is not str]:
        raise UserError(f"{folder / RECORD_FILE} is damaged: its {wrong[0]} is not what a run writes")
    if not is_percent:
        raise UserError(f"{folder / RECORD_FILE} is damaged: its accuracy is not a percentage")
    return Run(folder, record)


def find_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """Return the finished runs in ``folder`` and below it, and the folders with a log but no record.

    A folder inside a run's folder (one with a record or a ``config.yaml``) is not looked at: it holds an evaluation or
    a repetition of that run.
    """
    runs, unfinished, seen = [], [], set()
    for name, subfolders, files in os.walk(folder, followlinks=True):
        path, real_path = Path(name), os.path.realpath(name)
        subfolders.sort()
        if RECORD_FILE in files or CONFIG_FILE in files or real_path in seen:
            subfolders.clear()
        if real_path not in seen and RECORD_FILE in files:
            runs.append(read_run(path))
        elif real_path not in seen and "log.txt" in files and path != folder:
            unfinished.append(path)
        seen.add(real_path)
    return runs, unfinished


@cache
def _default_settings() -> dict[str, str]:
    """Return the default of each config key, as text: the value in records that are older than the key."""
    return {key: _to_text(value) for key, value in flatten(to_dict(get_cfg_default()))}


def find_differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the settings in which runs differ: by key, the value of each run.

    A setting that a record lacks has its default; one without a default does not count as a difference.
    """
    differences = {}
    for key in sorted(set().union(*(run.settings for run in runs))):
        values = [run.settings.get(key, _default_settings().get(key)) for run in runs]
        if len({value for value in values if value is not None}) > 1:
            differences[key] = ["not recorded" if value is None else value for value in values]
    return differences


def format_differences(runs: Sequence[Run], differences: dict[str, list[str]]) -> str:
    """Return ``KEY value (folders); …`` for the result of ``find_differences``."""
    parts = []
    for key, values in differences.items():
        for value in dict.fromkeys(values):
            folders = ", ".join(str(run.folder) for run, other in zip(runs, values, strict=True) if other == value)
            parts.append(f"{key} {value} ({folders})")
    return "; ".join(parts)


def format_repetition(runs: Sequence[Run]) -> str:
    """Return ``seed 1: folder (70.00), folder (71.00)`` for several records of one seed, else of ``one model``.

    Where these accuracies are equal, other results that differ are named; where the arithmetic differs, it is.
    """
    accuracies = [run.record.get("accuracy") for run in runs]
    texts = ["no accuracy" if accuracy is None else f"{accuracy:.2f}" for accuracy in accuracies]
    if _are_equal(texts):
        for key in RESULTS:
            values = [run.record.get(key) for run in runs]
            if not _are_equal(value for value in values if value is not None):
                texts = [f"{text}, {key} {value}" for text, value in zip(texts, values, strict=True)]
    if not _are_equal(run.facts[ARITHMETIC] for run in runs):
        texts = [f"{text}, {ARITHMETIC} {run.facts[ARITHMETIC]}" for text, run in zip(texts, runs, strict=True)]
    parts = ", ".join(f"{run.folder} ({text})" for run, text in zip(runs, texts, strict=True))
    return f"{f'seed {runs[0].seed}' if _are_equal(run.seed for run in runs) else 'one model'}: {parts}"


def have_equal_results(runs: Sequence[Run]) -> bool:
    """Return whether the records have equal RESULTS; one that a record lacks does not count."""
    return all(_are_equal(run.record[key] for run in runs if key in run.record) for key in RESULTS)


def _are_equal(values: Iterable) -> bool:
    """Return whether all values are equal."""
    values = list(values)
    return all(value == values[0] for value in values)


def group_repetitions(runs: Iterable[Run], name: Literal["seed", "model"]) -> list[list[Run]]:
    """Return the runs in groups of one ``seed`` or ``model``, by ascending seeds."""
    groups: dict[object, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault(getattr(run, name), []).append(run)
    return [*groups.values()]


def read_trials(folder: Path) -> set[Path]:
    """Return the folders of runs in ``folder`` and below it that sweeps into it or its parent were asked for."""
    trials = {path for output in (folder, folder.absolute().parent) for path in _read_trials_file(output)}
    return {path for path in trials if path.is_relative_to(folder.absolute())}


def write_trials(output: Path, folders: Iterable[Path]) -> None:
    """Add the folders of a sweep's runs to the file of all runs that sweeps into ``output`` were asked for."""
    with exclusive_lock(output):  # another sweep may add its own; a killed one may have left a temporary file
        trials = _read_trials_file(output) | {folder.absolute() for folder in folders}
        write_json(sorted(path.relative_to(output.absolute()).as_posix() for path in trials), output / TRIALS_FILE)


def _read_trials_file(output: Path) -> set[Path]:
    """Return the absolute paths in TRIALS_FILE of ``output``, none without the file; UserError if it is damaged."""
    if not (output / TRIALS_FILE).is_file():
        return set()
    names = read_json(output / TRIALS_FILE)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{output / TRIALS_FILE} is damaged: it is not a list of folders; remove it")
    paths = {(output / name).absolute() for name in names}
    return {path for path in paths if path.is_relative_to(output.absolute())}
