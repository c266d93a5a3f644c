"""Checkpoint files in Dassl's layout: ``<output_dir>/<model name>/model.pth.tar-<epoch>``, ``model-best.pth.tar``, and
a text file ``checkpoint`` that names the newest. Loading never runs code from a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .errors import UserError, error_reason
from .files import atomic_write
from .safe_load import safe_torch_load

BEST_NAME = "model-best.pth.tar"
LATEST_NAME = "model-latest.pth.tar-{}"  # {}: the epoch. Written by the clock; the next checkpoint replaces it
EPOCH_NAME = "model.pth.tar-{}"  # {}: the epoch


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save ``state`` to a file in ``save_dir`` and write the file's name to the text file ``checkpoint``.

    Args:
        state: the checkpoint: state_dict, epoch (number of finished epochs), optimizer, scheduler, val_result, …
        is_best: whether to save ``state`` as ``model-best.pth.tar``, too.
        remove_module_from_keys: whether to drop the prefix ``module.`` of ``nn.DataParallel`` from parameter names.
        model_name: the file's name; by default ``model.pth.tar-<epoch>``.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": {k.removeprefix("module."): v for k, v in state["state_dict"].items()}}
    state = {key: value.item() if isinstance(value, np.generic) else value for key, value in state.items()}
    name = model_name or EPOCH_NAME.format(state["epoch"])
    for target in [name, BEST_NAME] if is_best else [name]:
        with atomic_write(Path(save_dir, target), "wb") as file:
            torch.save(state, file)
    with atomic_write(Path(save_dir, "checkpoint")) as file:
        file.write(f"{name}\n")
    print(f"Checkpoint saved to {Path(save_dir, name)}")


def load_checkpoint(fpath: str | os.PathLike) -> dict[str, Any]:
    """Return a checkpoint's dict, with tensors on the CPU and without entries that are objects, as Dassl's schedulers.

    Raises:
        UserError: the file is absent, truncated, damaged, or no checkpoint.
    """
    if not os.path.isfile(fpath):
        raise UserError(f"no checkpoint at {fpath}")
    try:
        checkpoint = safe_torch_load(fpath)
    except UserError:
        raise
    except Exception as error:  # torch.load has no error class of its own for a damaged file
        raise UserError(f"{fpath} cannot be read as a checkpoint (damaged?): {error_reason(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f'{fpath} is not a checkpoint of this framework: it has no "state_dict"')
    return checkpoint


def load_model_state(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str | os.PathLike) -> None:
    """Load ``state_dict`` into ``model``, whether either comes from an ``nn.DataParallel`` or not.

    Raises:
        UserError: names or shapes differ, or values are NaN or infinite; the message names ``source`` and the
            parameters that do not fit.
    """
    model = model.module if isinstance(model, nn.DataParallel) else model
    state_dict = {k.removeprefix("module."): v for k, v in state_dict.items()}
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise UserError(f"{source} does not fit this configuration: {details or error}") from error
    check_finite({name: tensor for name, tensor in get_learned_tensors(model).items() if name in state_dict}, source)


def get_learned_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters and the running statistics of its normalisation layers, by name.

    Other buffers may hold infinity by design, such as attention masks.
    """
    statistics = {name: buffer for name, buffer in model.named_buffers() if "running_" in name}
    return {**dict(model.named_parameters()), **statistics}


@torch.no_grad()
def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value of a tensor is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(tensor.isfinite().all())
    lowest, highest = tensor.aminmax()  # NaN passes through; it takes a tenth of the time of isfinite
    return bool(lowest.isfinite() and highest.isfinite())


def check_finite(
    tensors: Mapping[str, torch.Tensor],
    source: str | os.PathLike,
    cause: str = "is damaged, or was saved after training had diverged; fetch or save it again",
) -> None:
    """Raise ``UserError``, which names ``source``, ``cause`` and the tensors, if any value is NaN or infinite."""
    problems = [
        f"{int((~tensor.isfinite()).sum()):,} of {tensor.numel():,} values of {name}"
        for name, tensor in tensors.items()
        if not is_finite(tensor)
    ]
    if problems:
        more = f" and values of {len(problems) - 3} other tensors" if len(problems) > 3 else ""
        raise UserError(f"{source} {cause}: {', '.join(problems[:3])}{more} are NaN or infinite")


def latest_checkpoint(save_dir: str | os.PathLike) -> Path | None:
    """Return the path that ``save_dir``'s text file ``checkpoint`` names, absent or not; None without the text file."""
    pointer = Path(save_dir, "checkpoint")
    if not pointer.is_file():
        return None
    return Path(save_dir, Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name)


def checkpoints_by_epoch(save_dir: str | os.PathLike, pattern: str = EPOCH_NAME) -> dict[int, Path]:
    """Return the checkpoints in ``save_dir`` named as ``pattern`` ({}: the epoch), by epoch, the earliest first."""
    paths = {path.name.rpartition("-")[2]: path for path in Path(save_dir).glob(pattern.format("*"))}
    return {int(epoch): paths[epoch] for epoch in sorted(filter(str.isdecimal, paths), key=int)}


def remove_old_checkpoint_files(save_dir: str | os.PathLike, keep: int = 0) -> None:
    """Remove the ``model-latest`` checkpoints, and all but the last ``keep`` of those named by epoch (0: remove none).

    The newest checkpoint and the best one are never removed.
    """
    current = latest_checkpoint(save_dir)
    old = list(checkpoints_by_epoch(save_dir).values())[:-keep] if keep else []
    for path in (*checkpoints_by_epoch(save_dir, LATEST_NAME).values(), *old):
        if path != current:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:  # on Windows, another program has it open
                print(f"Note: {path} is not removed: {error.strerror}")


def find_checkpoint(save_dir: str | os.PathLike, epoch: int | None = None) -> Path:
    """Return the checkpoint of ``epoch``; without ``epoch``, the best on validation, or else the newest.

    The newest is the one that the text file ``checkpoint`` names, or without this file, that of the highest epoch.

    Raises:
        UserError: there is none; the message lists the epochs that have one.
    """
    by_epoch = {**checkpoints_by_epoch(save_dir, LATEST_NAME), **checkpoints_by_epoch(save_dir)}
    newest = latest_checkpoint(save_dir) or by_epoch.get(max(by_epoch, default=0))
    name, candidates = "checkpoint", [Path(save_dir, BEST_NAME), newest]
    if epoch is not None:
        name, candidates = f"checkpoint of epoch {epoch}", [Path(save_dir, EPOCH_NAME.format(epoch))]
    for path in candidates:
        if path is not None and path.is_file():
            return path
    epochs = ", ".join(map(str, checkpoints_by_epoch(save_dir)))
    raise UserError(f"no {name} in {save_dir} ({f'epochs there: {epochs}' if epochs else 'there is none'})")


def find_checkpoints(model_dir: str | os.PathLike, names: Sequence[str], epoch: int | None = None) -> dict[str, Path]:
    """Return the checkpoint of each model in ``names`` by its name, chosen by ``epoch`` as in ``find_checkpoint``.

    ``model_dir`` is the folder of a run. For a single model, it may also be the model's folder, or a checkpoint file.

    Raises:
        UserError: ``model_dir`` or a checkpoint is missing; it is one file for several models, or of another epoch.
    """
    source = Path(model_dir)
    if source.is_file():
        if len(names) > 1:
            raise UserError(f"{source} is one checkpoint, but there are {len(names)} models: {', '.join(names)}")
        if epoch is not None and (saved := load_checkpoint(source).get("epoch")) != epoch:
            raise UserError(f"{source} is the checkpoint of epoch {saved}, not {epoch}; leave out --load-epoch")
        return dict.fromkeys(names, source)
    if not source.is_dir():
        raise UserError(f"no model directory or checkpoint {source}")
    is_model_folder = len(names) == 1 and holds_checkpoints(source) and not Path(source, names[0]).is_dir()
    return {name: find_checkpoint(source if is_model_folder else source / name, epoch) for name in names}


def holds_checkpoints(folder: str | os.PathLike) -> bool:
    """Return whether checkpoint files lie directly in ``folder``, as in the folder of a model."""
    return any(Path(folder).glob("model*.pth.tar*"))


def resume_from_checkpoint(
    fdir: str | os.PathLike, model: nn.Module, optimizer=None, scheduler=None, epoch: int | None = None, scaler=None
) -> int:
    """Load the checkpoint of ``epoch`` (None: the newest) in ``fdir``; return the number of its finished epochs.

    The checkpoint fills the model and, if given, optimizer, scheduler and scaler. The number is the next epoch, counted
    from 0. Raise ``UserError`` if there is no such checkpoint, or it does not fit the model or the optimizer.
    """
    path = latest_checkpoint(fdir) if epoch is None else find_checkpoint(fdir, epoch)
    if path is None:
        raise UserError(f"no checkpoint to resume from in {fdir}")
    return resume_from_checkpoint_file(path, model, optimizer, scheduler, scaler)["epoch"]


def resume_from_checkpoint_file(
    path: Path, model: nn.Module, optimizer=None, scheduler=None, scaler=None, force: bool = False
) -> dict[str, Any]:
    """Load a checkpoint file into the model and, if given, optimizer, scheduler and scaler; return the checkpoint.

    With ``force``, the optimizer and the schedule keep their current hyperparameters. Otherwise, hyperparameters of the
    optimizer that differ raise ``UserError``, as does a file that is no checkpoint or does not fit the model.
    """
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.get("epoch"), int):
        raise UserError(f"{path} does not say after which epoch it was saved; a run cannot resume from it")
    print(f'Loading checkpoint from "{path}"')
    load_model_state(model, checkpoint["state_dict"], path)
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        _resume_optimizer(optimizer, checkpoint["optimizer"], path, force)
    _resume_schedule(scheduler, checkpoint.get("scheduler"), checkpoint["epoch"], force)
    if scaler is not None and checkpoint.get("scaler"):
        scaler.load_state_dict(checkpoint["scaler"])
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint


def _resume_optimizer(optimizer: torch.optim.Optimizer, saved: dict, path: Path, force: bool) -> None:
    """Load the optimizer's state ``saved``; refuse other hyperparameters or, with ``force``, keep the current ones."""
    if not force:
        _check_same_optimizer(optimizer, saved, path)
    current = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise UserError(f"{path} holds the state of another optimizer: {error}") from error
    if force:
        for group, hyperparameters in zip(optimizer.param_groups, current, strict=True):
            group.update(hyperparameters)


def _check_same_optimizer(optimizer: torch.optim.Optimizer, saved: dict, path: Path) -> None:
    """Raise ``UserError`` where the state ``saved`` has other hyperparameters than the optimizer."""
    for current, former in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for key in ("initial_lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "amsgrad", "alpha"):
            if current.get(key) != former.get(key):
                raise UserError(
                    f"{path} was trained with {key} {former.get(key)}, but OPTIM sets {current.get(key)}. "
                    "Resume with the same optimizer settings, or force the new ones with --force-resume "
                    "(FORCE_RESUME True); or start another run from these weights with MODEL.INIT_WEIGHTS"
                )


def _resume_schedule(scheduler, saved: dict | None, epoch: int, force: bool) -> None:
    """Bring a schedule to its rate after ``epoch`` epochs; ``saved`` is its state in the checkpoint.

    A LambdaLR loads the state of a LambdaLR; with ``force``, only its count of steps. From any other state, or None, it
    takes its rate at ``epoch``: Dassl's schedulers stop counting after the warm-up. Other schedulers load ``saved``.
    """
    is_lambda_state = saved is not None and "lr_lambdas" in saved
    if not isinstance(scheduler, LambdaLR) or (is_lambda_state and not force):
        if scheduler is not None and saved is not None:
            scheduler.load_state_dict(saved)
        return
    step = saved["last_epoch"] if saved and is_lambda_state else epoch
    scheduler.last_epoch = step
    scheduler._last_lr = [lr * rate(step) for lr, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, lr in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = lr


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Load the tensors of a checkpoint whose names and shapes match the model's; print the names of the others.

    Raise ``UserError`` if no tensor matches one of the model's parameters.
    """
    state_dict = {k.removeprefix("module."): v for k, v in load_checkpoint(weight_path)["state_dict"].items()}
    current = model.state_dict()
    matched = {k: v for k, v in state_dict.items() if k in current and current[k].shape == v.shape}
    parameters = {name for name, _ in model.named_parameters()}
    if not parameters & set(matched):
        shapes = ", ".join(f"{name} {tuple(current[name].shape)}" for name in sorted(parameters))
        raise UserError(f"nothing in {weight_path} has the name and shape of one of the model's parameters: {shapes}")
    load_model_state(model, {**current, **matched}, weight_path)
    print(f'Loaded {len(matched)} tensors from "{weight_path}"')
    if unmatched := sorted(set(state_dict) - set(matched)):
        print(f"Left out, for their name or shape: {', '.join(unmatched)}")


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Return the number of parameter elements of a model, or of a list of parameters or parameter groups."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    groups = (p["params"] if isinstance(p, dict) else [p] for p in params or ())
    return sum(p.numel() for group in groups for p in group)
