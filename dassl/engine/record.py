"""The record of a finished run: what it gave and what it was, for programs. It is enough to do the run again."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from dassl import __version__
from dassl.config import to_dict
from dassl.utils import UserError, from_first, gather, package_versions, write_json
from dassl.utils.checkpoint import find_checkpoint, in_step
from dassl.utils.downloads import file_digest
from dassl.utils.env import machine
from dassl.utils.results import RECORD

from .trainer import LOADERS, SimpleTrainer


def inputs_of(trainer: SimpleTrainer, model_dir: str = "", epoch: int | None = None) -> dict:
    """What a run is made from, known before it trains: the fingerprint of each split, where its few shots are kept, and
    the checkpoints that it starts from or evaluates (MODEL.INIT_WEIGHTS, RESUME, ``model_dir`` with ``epoch``)."""
    files = _checkpoints(trainer, model_dir, epoch)
    return {
        "splits": trainer.splits,
        "few_shot_split": getattr(trainer.dm.dataset, "split_source", None),
        "started_from": [{"file": str(file), "sha256": file_digest(file)} for file in files if file.is_file()],
    }


def _checkpoints(trainer: SimpleTrainer, model_dir: str, epoch: int | None) -> list[Path]:
    cfg, names = trainer.cfg, trainer.get_model_names()
    files = [Path(cfg.MODEL.INIT_WEIGHTS)] if cfg.MODEL.INIT_WEIGHTS else []
    if model_dir:
        with contextlib.suppress(UserError):  # whoever loads it says so, or looks for other files
            files += [find_checkpoint(Path(model_dir, name), epoch) for name in names]
    elif cfg.RESUME and Path(cfg.RESUME).resolve() != Path(cfg.OUTPUT_DIR).resolve():
        files += in_step(Path(cfg.RESUME, name) for name in names)
    return files


def write_record(trainer: SimpleTrainer, seconds: float, command: list[str], code: dict, inputs: dict) -> None:
    """Write the record of a run that has come to its end; its presence is what tells a finished run.

    Args:
        command: what ``train.py`` was called with.
        code: :func:`dassl.utils.env.code_version` as the run began; the files may have changed since.
        inputs: :func:`inputs_of` the run. ``trainer.describe()`` may add entries, such as the fingerprint of weights.
    """
    cfg = trainer.cfg
    trainer.refuse_bad_images(evaluated=cfg.TEST.SPLIT)  # a method may have an end of training of its own
    splits = {name: {**entry, **_content(trainer, name)} for name, entry in inputs["splits"].items()}
    record = {
        **(trainer.results or {"accuracy": None}),
        **_counts(trainer),
        **trainer.bad_images.entry(),
        **({"forced": list(trainer.forced)} if trainer.forced else {}),
        "split": cfg.TEST.SPLIT,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "trainable_parameters": trainer.trainable_parameters(),
        **trainer.describe(),
        **inputs,
        "splits": splits,
        "seconds": round(seconds, 2),
        "code": code,
        "versions": {"dassl": __version__, **package_versions()},
        "machine": {"device": str(trainer.device), **machine()},
        **_processes(trainer.processes),
        "command": command,
        "config": to_dict(cfg),
    }
    from_first(lambda: write_json(record, Path(cfg.OUTPUT_DIR, RECORD)))


def _counts(trainer: SimpleTrainer) -> dict[str, int]:
    """Of how many images how many were right, where the result is an accuracy."""
    names = ("correct", "total") if "accuracy" in (trainer.results or {}) else ()
    return {name: getattr(trainer.evaluator, f"_{name}") for name in names if hasattr(trainer.evaluator, f"_{name}")}


def _processes(numbers: list[int]) -> dict[str, int | list[int]]:
    """How many processes there were, if several: a number, or that of each part of a run that went on with another."""
    return {} if numbers == [1] else {"processes": numbers if len(numbers) > 1 else numbers[0]}


def _content(trainer: SimpleTrainer, split: str) -> dict[str, str]:
    """A checksum over those of a split's image files, in their order, if features were looked up by those of all."""
    loader = getattr(trainer, LOADERS[split], None)
    checksums = {}
    for known in gather(getattr(loader, "_contents", {})):
        checksums |= known
    if not checksums or len(checksums) < len(loader.dataset):
        return {}
    return {"content": hashlib.sha256("".join(checksums[i] for i in range(len(checksums))).encode()).hexdigest()}
