"""Which checkpoint a run goes on from, what it holds beside a model, and whether it fits the run.

The files themselves are written and read by ``dassl.utils.checkpoint``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dassl.config.run_config import diff_configs
from dassl.data.datasets.fingerprint import split_fingerprints
from dassl.distributed import all_gather_objects, get_world_size, is_main_process
from dassl.utils import NonFiniteError, UserError, get_rng_states, load_checkpoint, save_checkpoint, set_rng_states
from dassl.utils.checkpoint import (
    BEST_NAME,
    EPOCH_NAME,
    LATEST_NAME,
    checkpoints_by_epoch,
    latest_checkpoint,
    remove_old_checkpoint_files,
    resume_from_checkpoint_file,
)

from .build import default_cfg

LOADER_NAMES = {"train_x": "train_loader_x", "train_u": "train_loader_u", "val": "val_loader", "test": "test_loader"}


class DivergenceError(NonFiniteError):
    """Training has diverged."""


def divergence_error(trainer, what: str) -> DivergenceError:
    """Return the error that says when training diverged, which checkpoint is good, and what may help."""
    at = f"epoch {trainer.epoch + 1}"
    if trainer.current_lr is not None:
        at += (
            f", batch {trainer.batch_idx + 1} of {trainer.num_batches}, at a learning rate of {trainer.current_lr:.4g}"
        )
    saved = (latest_checkpoint(Path(getattr(trainer, "output_dir", ""), name)) for name in trainer.get_model_names())
    good = ", ".join(str(path) for path in saved if path and path.is_file())
    return DivergenceError(
        f"{what} It happened in {at}. The last good checkpoint: {good or 'none was saved yet'}. A "
        "smaller OPTIM.LR, a longer warm-up (OPTIM.WARMUP_EPOCH) or fp32 may help, in another output directory"
        f"{', or from that checkpoint on with --force-resume' if good else ''}"
    )


@contextmanager
def translate_divergence(trainer) -> Iterator[None]:
    """Say when it happened, where outputs are no numbers after training began."""
    try:
        yield
    except NonFiniteError as error:
        if trainer.current_lr is None:
            raise
        raise divergence_error(trainer, f"{error}!") from error


def latest_common_checkpoints(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Return the newest checkpoint of each model; an empty list if a model has none.

    A run that was killed between the checkpoints of two models goes on from the last epoch that all of them have.
    """
    paths = {name: latest_checkpoint(Path(folder, name)) for name in names}
    if None in paths.values():
        return []
    if len(paths) < 2:
        return list(paths.values())
    epochs = {name: load_checkpoint(path).get("epoch") for name, path in paths.items()}
    if len(set(epochs.values())) == 1 or None in epochs.values():
        return list(paths.values())
    folders = {name: Path(folder, name) for name in paths}
    have = [
        {**checkpoints_by_epoch(f, LATEST_NAME), **checkpoints_by_epoch(f, EPOCH_NAME), epochs[name]: paths[name]}
        for name, f in folders.items()
    ]
    common = [epoch for epoch in set.intersection(*map(set, have)) if epoch <= min(epochs.values())]
    return [files[max(common)] for files in have] if common else []


def build_checkpoints(trainer, epoch: int, val_result: float | None) -> dict[str, dict[str, Any]]:
    """Return the checkpoint of each model after ``epoch`` (counted from 0).

    Raises:
        NonFiniteLoss: a parameter is infinite or NaN.
    """
    for name, model in trainer._models.items():
        for key, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise divergence_error(trainer, f"{key} in {name} is infinite or NaN after the last update!")
    state, states = get_run_state(trainer), {}
    for name, model in trainer._models.items():
        optim, sched = trainer._optims[name], trainer._scheds[name]
        states[name] = {
            "state_dict": model.state_dict(),
            "epoch": epoch + 1,
            "optimizer": optim.state_dict() if optim is not None else None,
            "scheduler": sched.state_dict() if sched is not None else None,
            "val_result": val_result,
            **state,
        }
    return states


def get_run_state(trainer) -> dict[str, Any]:
    """Return what a checkpoint holds beside a model, so that a resumed run goes on as if it had never stopped."""
    state = {"random": get_rng_states(), **trainer.extra_state.state_dict(trainer)}
    if hasattr(trainer, "cfg"):
        state |= {"best_result": trainer.best_result, "origin": get_origin(trainer)}
    if (processes := get_world_sizes(trainer)) != [1]:
        state["processes"] = processes
    if trainer.forced:
        state["forced"] = list(trainer.forced)
    if trainer.scaler is not None and trainer.scaler.is_enabled():
        state["scaler"] = trainer.scaler.state_dict()
    return state


def load_models(trainer, directory: str) -> dict[str, Any] | None:
    """Load each model, optimizer and schedule from ``directory``; return the run's state, None if there is none.

    Raises:
        UserError: a checkpoint is damaged, or does not fit.
    """
    names = trainer.get_model_names()
    if not (paths := latest_common_checkpoints(directory, names)):
        return None
    print(f"Found checkpoint at {directory} (will resume training)")
    for name, path in zip(names, paths, strict=True):
        parts = trainer._models[name], trainer._optims[name], trainer._scheds[name]
        checkpoint = resume_from_checkpoint_file(path, *parts, trainer.scaler, trainer.force_resume)
    try:
        load_run_state(trainer, checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    return checkpoint


def load_run_state(trainer, checkpoint: dict[str, Any]) -> None:
    """Take over what :func:`get_run_state` saved; checkpoints of others do not have it.

    Raises:
        UserError: the checkpoint was made from something else, and FORCE_RESUME is False; or the trainer had an object
            on itself that a checkpoint cannot hold.
    """
    if "random" in checkpoint:
        set_rng_states(checkpoint["random"])
    changed = diff_origins(checkpoint.get("origin", {}), get_origin(trainer)) if hasattr(trainer, "cfg") else []
    if changed and not trainer.force_resume:
        raise UserError(
            f"the checkpoints were made with other {'; '.join(changed)}. Choose another --output-dir, or go on from "
            "what is there with --force-resume (FORCE_RESUME True)"
        )
    now = [f"after epoch {checkpoint['epoch']}, other {change}" for change in changed]
    trainer.forced = (*checkpoint.get("forced", ()), *now)
    for change in trainer.forced:
        print(f"--force-resume: {change}")
    # A result under other settings is nothing to compare with.
    trainer.resumed_with_changes = bool(changed)
    trainer.best_result = -math.inf if changed else checkpoint.get("best_result", trainer.best_result)
    trainer.earlier_world_sizes = tuple(checkpoint.get("processes", [1]))
    trainer.extra_state.load_state_dict(checkpoint)


def resume(trainer) -> int:
    """Resume the run in the output directory, or the one that RESUME names; return the epoch to start at.

    Raises:
        UserError: RESUME has no checkpoint, the run is past OPTIM.MAX_EPOCH, or its best model is missing.
    """
    cfg, own = trainer.cfg, trainer.output_dir
    directory = own if latest_common_checkpoints(own, trainer.get_model_names()) or not cfg.RESUME else cfg.RESUME
    epoch = trainer.resume_model_if_exist(directory)
    if len(set(epochs := all_gather_objects(epoch))) > 1:
        raise UserError(
            f"the processes would go on after epochs {epochs}: {directory} is not the same folder for all of them, as "
            "one on a file system of all machines would be"
        )
    if cfg.RESUME and not epoch:
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if epoch > trainer.max_epoch:
        raise UserError(f"{directory} is at epoch {epoch}; OPTIM.MAX_EPOCH is {trainer.max_epoch}")
    if epoch and cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST and not trainer.resumed_with_changes:
        adopt_best(trainer, directory)
    if epoch == trainer.max_epoch:  # the run may have been killed before it did so
        remove_old_checkpoints(trainer)
    return epoch


def remove_old_checkpoints(trainer) -> None:
    """Remove the checkpoints that need not stay (TRAIN.KEEP_CHECKPOINTS)."""
    for name in trainer.get_model_names() if is_main_process() else ():
        remove_old_checkpoint_files(Path(trainer.output_dir, name), trainer.cfg.TRAIN.KEEP_CHECKPOINTS)


def adopt_best(trainer, directory: str) -> None:
    """Take over the best model so far: its result, if the checkpoint has none; from another run's folder, its file."""
    check_best_exists(trainer, directory)
    other = Path(directory).resolve() != Path(trainer.output_dir).resolve()
    for name in trainer.get_model_names() if other or math.isinf(trainer.best_result) else ():
        best = load_checkpoint(Path(directory, name, BEST_NAME))
        if best.get("val_result") is not None:
            trainer.best_result = best["val_result"]
        if other and is_main_process():
            save_checkpoint(best, Path(trainer.output_dir, name), model_name=BEST_NAME)


def check_best_exists(trainer, directory: str) -> None:
    """Raise :class:`UserError` unless the best model so far is in ``directory``."""
    for name in trainer.get_model_names():
        if not (path := Path(directory, name, BEST_NAME)).is_file():
            raise UserError(f"TEST.FINAL_MODEL is best_val, but the run kept no {path}: it was trained without")


def get_origin(trainer) -> dict[str, str]:
    """Return what training follows from, computed once: settings, fingerprints of images and initial weights."""
    if not hasattr(trainer, "_origin"):
        images = {f"{name} images": entry["sha256"] for name, entry in get_splits(trainer).items() if name != "test"}
        weights = (trainer.provenance.get("weights") or {}).get("sha256")
        trainer._origin = {"settings": trainer.cfg.dump(), **images, **({"weights": weights} if weights else {})}
    return trainer._origin


def get_splits(trainer) -> dict[str, dict]:
    """Return the number of images and the fingerprint of each split; computed once."""
    if not hasattr(trainer, "_splits"):
        node = trainer.cfg.DATASET
        root = os.path.join(os.path.expanduser(node.ROOT), os.path.expanduser(node.FOLDER))
        trainer._splits = split_fingerprints(trainer.dm.dataset, root) if hasattr(trainer, "dm") else {}
    return trainer._splits


def diff_origins(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return what differs between two origins, as far as both tell."""
    others = [name for name in now if name != "settings" and then.get(name, now[name]) != now[name]]
    changed = [f"{name} {then[name][:12]} -> {now[name][:12]}" for name in others]
    settings = diff_configs(then["settings"], now["settings"], default_cfg()) if "settings" in then else []
    return ([f"settings: {'; '.join(settings)}"] if settings else []) + changed


def get_world_sizes(trainer) -> list[int]:
    """Return how many processes the run has, after those of its earlier parts, if another number."""
    earlier = list(trainer.earlier_world_sizes)
    return earlier if earlier[-1:] == [get_world_size()] else [*earlier, get_world_size()]
