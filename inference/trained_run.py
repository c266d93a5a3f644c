"""What a finished run learned, without its data: its settings, its class names, its trainer with the model loaded."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from yacs.config import CfgNode

from dassl import engine
from dassl.config import merge_file, merge_options
from dassl.config.merge import flatten
from dassl.config.run_config import (
    CONFIG_FILE as CONFIG,  # runs that only evaluate have none; their record holds the same
)
from dassl.engine.record import RECORD_FILE, read_record
from dassl.utils import UserError


def suppress_stdout() -> contextlib.AbstractContextManager:
    """Return a context in which nothing is printed: the framework talks as if to a log, but output is for results."""
    return contextlib.redirect_stdout(io.StringIO())


def load_run_cfg(folder: Path) -> CfgNode:
    """Return the settings of the run in ``folder``, not frozen.

    Raises:
        UserError: there is no run; or its settings are damaged, or not of this version.
    """
    import trainers  # noqa: F401  registers the methods

    cfg = engine.default_cfg()
    if (folder / CONFIG).is_file():
        merge_file(cfg, folder / CONFIG)
    elif (folder / RECORD_FILE).is_file():
        try:
            merge_options(
                cfg,
                [text for pair in flatten(_read_record_if_any(folder).get("config", {})) for text in map(str, pair)],
            )
        except UserError as error:
            raise UserError(f"the settings in {folder / RECORD_FILE}: {error}") from error
    else:
        runs = sorted({str(path.parent) for name in (CONFIG, RECORD_FILE) for path in folder.rglob(name)})
        below = f"; below it there are {', '.join(runs[:5])}" if runs else ""
        raise UserError(f"no run in {folder}: it has no {CONFIG}{below}")
    return cfg


def _read_record_if_any(folder: Path) -> dict:
    return read_record(folder) if (folder / RECORD_FILE).is_file() else {}


def load_classnames(folder: Path) -> list[str]:
    """Return the class names of the run in ``folder``; none if its record does not tell them."""
    return [str(name) for name in _read_record_if_any(folder).get("classnames", ())]


def load_trainer(
    folder: Path, classes: Sequence[str] = (), epoch: int | None = None, weights: str = "", cuda: bool = True
):
    """Return the trainer of the run in ``folder``, built without data, its model loaded, ready for ``model_inference``.

    Nothing is logged, and nothing is written.

    Args:
        classes: names to take instead of the run's own.
        epoch: of the checkpoint; without one the best on validation, else the newest.
        weights: a file of CLIP weights to take instead of the one that the run names.
        cuda: may be used where there is one.

    Raises:
        UserError: there is no run, or no checkpoint of it, or no class names; or the CLIP or the classes are others
            than those that the model was trained with, and it depends on them.
    """
    import torch

    cfg, own = load_run_cfg(folder), load_classnames(folder)
    names = list(classes or own)
    if not names:
        raise UserError(
            f"{folder} has no {RECORD_FILE} with class names (a run on captions, an unfinished or an older one): "
            "name them with --classes, in the order of the run's data set"
        )
    cfg.MODEL.INIT_WEIGHTS = ""  # where training started from; the checkpoint takes its place
    cfg.FEATURES.ENABLED, cfg.FEATURES.PREC = False, ""
    cfg.MODEL.BACKBONE.WEIGHTS = weights or cfg.MODEL.BACKBONE.WEIGHTS
    cfg.USE_CUDA = cfg.USE_CUDA and cuda
    cfg.freeze()
    # The constructor draws an initial context, which the checkpoint overwrites: the caller's generator stays as it was.
    with suppress_stdout(), torch.random.fork_rng(devices=[]):
        trainer = _subclass_without_data(cfg.TRAINER.NAME, names)(cfg)
        _check_weights(trainer, folder)
        try:
            trainer.load_model(str(folder), epoch)
        except UserError as error:
            if names == own or not own:
                raise
            hint = f"--classes names other classes than the run's own ({', '.join(own)}), which it may go with alone"
            raise UserError(f"{str(error).rstrip('.')}. {hint}") from error
        trainer.set_model_mode("eval")
    return trainer


def _subclass_without_data(name: str, classnames: list[str]) -> type:
    """Return the trainer of that name, with class names in place of a data set."""
    base = engine.TRAINER_REGISTRY.get(name)

    def build_data_loader(self) -> None:
        self.num_classes, self.lab2cname, self.num_source_domains = len(classnames), dict(enumerate(classnames)), 1
        self.dm = SimpleNamespace(num_classes=self.num_classes, lab2cname=self.lab2cname)
        self.dm.dataset = SimpleNamespace(classnames=classnames, **vars(self.dm))
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    return type(name, (base,), {"build_data_loader": build_data_loader})


def _check_weights(trainer, folder: Path) -> None:
    """Raise :class:`UserError` if the run began with other weights of CLIP: what it learned means nothing to these."""
    before, now = (record.get("weights", {}) for record in (_read_record_if_any(folder), trainer.provenance))
    if before.get("sha256") and before["sha256"] != now.get("sha256"):
        raise UserError(
            f"the run in {folder} began with other weights than {now.get('file') or now.get('backbone')}: their "
            f"fingerprint is {now.get('sha256')}, that of the run {before['sha256']}"
        )
