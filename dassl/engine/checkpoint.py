"""Checkpoints of a run: choosing one to resume from, the run's state in it, and checking that it fits the run.

``dassl.utils.checkpoint`` reads and writes the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from dassl.config.merge import flatten
from dassl.config.run_config import diff_configs, format_changes
from dassl.data.datasets.fingerprint import get_image_root, split_fingerprints
from dassl.data.decoding import format_decoding, get_decoding
from dassl.distributed import all_gather_objects, get_world_size, is_main_process
from dassl.utils import (
    NonFiniteError,
    UserError,
    file_digest,
    get_rng_states,
    load_checkpoint,
    save_checkpoint,
    set_rng_states,
)
from dassl.utils.checkpoint import (
    BEST_NAME,
    EPOCH_NAME,
    LATEST_NAME,
    checkpoints_by_epoch,
    is_finite,
    latest_checkpoint,
    remove_old_checkpoint_files,
    resume_from_checkpoint_file,
)

from .build import default_cfg

# by split: the attribute of a trainer that holds the loader
LOADER_NAMES = {"train_x": "train_loader_x", "train_u": "train_loader_u", "val": "val_loader", "test": "test_loader"}


class DivergenceError(NonFiniteError):
    """A loss, a parameter or an output of a model in training is infinite or NaN."""


def divergence_error(trainer, problem: str) -> DivergenceError:
    """Return an error: ``problem``, a sentence, then the epoch, the batch, the last good checkpoint, and remedies."""
    position = f"epoch {trainer.epoch + 1}"
    if trainer.current_lr is not None:
        batch = f"batch {trainer.batch_idx + 1} of {trainer.num_batches}"
        position += f", {batch}, at a learning rate of {trainer.current_lr:.4g}"
    latest = (latest_checkpoint(Path(getattr(trainer, "output_dir", ""), name)) for name in trainer.get_model_names())
    saved = ", ".join(str(path) for path in latest if path and path.is_file())
    return DivergenceError(
        f"{problem} It happened in {position}. The last good checkpoint: {saved or 'none was saved yet'}. A "
        "smaller OPTIM.LR, a longer warm-up (OPTIM.WARMUP_EPOCH) or fp32 may help, in another output directory"
        f"{', or from that checkpoint on with --force-resume (FORCE_RESUME True)' if saved else ''}"
    )


@contextmanager
def translate_divergence(trainer) -> Iterator[None]:
    """Turn a ``NonFiniteError`` in the body of a ``with`` into ``divergence_error``; before training, leave it."""
    try:
        yield
    except NonFiniteError as error:
        if trainer.current_lr is None:
            raise
        raise divergence_error(trainer, f"{error}!") from error


def latest_common_checkpoints(folder: str | Path, names: Iterable[str]) -> list[Path]:
    """Return the checkpoint file of each model in ``names``, of the last epoch that all have; [] without such an epoch.

    ``folder`` is a run's. The models' newest epochs differ if the run was killed between two saves.
    """
    names = list(names)
    paths = {name: path for name in names if (path := latest_checkpoint(Path(folder, name)))}
    if len(paths) < len(names):
        return []
    if len(paths) < 2:
        return list(paths.values())
    epochs: dict[str, Any] = {name: load_checkpoint(path).get("epoch") for name, path in paths.items()}
    if len(set(epochs.values())) == 1 or None in epochs.values():
        return list(paths.values())
    folders = {name: Path(folder, name) for name in paths}
    available = [
        {**checkpoints_by_epoch(f, LATEST_NAME), **checkpoints_by_epoch(f, EPOCH_NAME), epochs[name]: paths[name]}
        for name, f in folders.items()
    ]
    common = [epoch for epoch in set.intersection(*map(set, available)) if epoch <= min(epochs.values())]
    return [files[max(common)] for files in available] if common else []


def build_checkpoints(trainer, epoch: int, val_result: float | None) -> dict[str, dict[str, Any]]:
    """Return the content of each model's checkpoint after ``epoch`` (from 0), by the model's name.

    ``val_result`` is the result on validation images, if there is one. Raises ``DivergenceError`` if a parameter
    is infinite or NaN.
    """
    for name, model in trainer._models.items():
        for key, parameter in model.named_parameters():
            if not is_finite(parameter):
                raise divergence_error(trainer, f"{key} in {name} is infinite or NaN after the last update!")
    run_state, checkpoints = get_run_state(trainer), {}
    for name, model in trainer._models.items():
        optim, sched = trainer._optims[name], trainer._scheds[name]
        checkpoints[name] = {
            "state_dict": model.state_dict(),
            "epoch": epoch + 1,
            "optimizer": optim.state_dict() if optim is not None else None,
            "scheduler": sched.state_dict() if sched is not None else None,
            "val_result": val_result,
            **run_state,
        }
    return checkpoints


def get_run_state(trainer) -> dict[str, Any]:
    """Return the state of the run, which every model's checkpoint holds so that a resume is exact.

    Entries: ``random`` (states of generators), those of ``ExtraState.state_dict``, ``best_result``, ``origin``
    (``get_origin``), ``processes`` (``get_world_sizes``, if ever other than 1), ``forced`` (the changes
    that --force-resume has accepted, as texts), ``scaler`` (of mixed precision). Entries that do not apply are missing.
    """
    state = {"random": get_rng_states(), **trainer.extra_state.state_dict(trainer)}
    if hasattr(trainer, "cfg"):
        state |= {"best_result": trainer.best_result, "origin": get_origin(trainer)}
    if (world_sizes := get_world_sizes(trainer)) != [1]:
        state["processes"] = world_sizes
    if trainer.forced:
        state["forced"] = list(trainer.forced)
    if trainer.scaler is not None and trainer.scaler.is_enabled():
        state["scaler"] = trainer.scaler.state_dict()
    return state


def load_models(trainer, directory: str) -> dict[str, Any] | None:
    """Load every model, optimizer, schedule and the run's state from the newest checkpoints in ``directory``, a run's.

    Returns the checkpoint of the model registered last, or None, with nothing loaded, if there are no checkpoints (see
    ``latest_common_checkpoints``). Raises ``UserError`` if a checkpoint is damaged, or does not fit the run.
    """
    names = trainer.get_model_names()
    if not (paths := latest_common_checkpoints(directory, names)):
        return None
    print(f"Found checkpoint at {directory} (will resume training)")
    for name, path in zip(names, paths, strict=True):
        objects = trainer._models[name], trainer._optims[name], trainer._scheds[name], trainer.scaler
        checkpoint = resume_from_checkpoint_file(path, *objects, trainer.force_resume)
    try:
        load_run_state(trainer, checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    return checkpoint


def load_run_state(trainer, checkpoint: dict[str, Any]) -> None:
    """Restore the generators and ``trainer`` to the state that ``get_run_state`` put into ``checkpoint``.

    Entries may be missing, as in the original CoOp's checkpoints. Raises ``UserError`` if the origin
    (``get_origin``) has changed; with FORCE_RESUME, instead appends the changes to ``trainer.forced`` and forgets
    the best result. Also raises it if the checkpoint names an attribute of the trainer that it could not hold.
    """
    if "random" in checkpoint:
        set_rng_states(checkpoint["random"])
    changes = diff_origins(checkpoint.get("origin", {}), get_origin(trainer)) if hasattr(trainer, "cfg") else []
    if changes and not trainer.force_resume:
        raise UserError(
            f"the checkpoints were made with other {'; '.join(changes)}. Choose another --output-dir, or resume from "
            "these checkpoints with --force-resume (FORCE_RESUME True)"
        )
    forced = [f"after epoch {checkpoint['epoch']}, other {change}" for change in changes]
    if any("OPTIM." in change for change in changes):
        forced.append(describe_forced_schedule(trainer, checkpoint["epoch"]))
    trainer.forced = (*checkpoint.get("forced", ()), *forced)
    for change in trainer.forced:
        print(f"--force-resume: {change}")
    trainer.resumed_with_changes = bool(changes)
    # A result before the changes cannot be compared with one after them.
    trainer.best_result = -math.inf if changes else checkpoint.get("best_result", trainer.best_result)
    trainer.earlier_world_sizes = tuple(checkpoint.get("processes", [1]))
    trainer.extra_state.load_state_dict(checkpoint)


def describe_forced_schedule(trainer, epoch: int) -> str:
    """Return a sentence on the learning rate after ``epoch``, from which --force-resume has continued with other OPTIM.

    As ``dassl.utils.checkpoint`` resumes a schedule, only a LambdaLR follows the new settings.
    """
    schedules = [sched for sched in trainer._scheds.values() if sched is not None]
    if all(isinstance(sched, LambdaLR) for sched in schedules):
        return f"from epoch {epoch + 1} on, the learning rate is that of the new settings at this epoch"
    return f"from epoch {epoch + 1} on, a schedule that the method builds itself goes on as in the checkpoint"


def resume(trainer) -> int:
    """Resume from OUTPUT_DIR if it holds checkpoints, else from RESUME; return the epoch to start at (0: a new run).

    Raises ``UserError`` if RESUME has no checkpoint, the epoch is past OPTIM.MAX_EPOCH or differs between
    processes, or the best model is missing though TEST.FINAL_MODEL is best_val.
    """
    cfg, folder = trainer.cfg, trainer.output_dir
    has_checkpoints = latest_common_checkpoints(folder, trainer.get_model_names())
    directory = folder if has_checkpoints or not cfg.RESUME else cfg.RESUME
    epoch = trainer.resume_model_if_exist(directory)
    if len(set(epochs := all_gather_objects(epoch))) > 1:
        raise UserError(
            f"the processes would resume after different epochs, {epochs}: {directory} is not the same folder for all "
            "of them. Choose one on a file system that all machines share"
        )
    if cfg.RESUME and not epoch:
        raise UserError(f"there is no checkpoint to resume from in {cfg.RESUME}")
    if epoch > trainer.max_epoch:
        raise UserError(f"{directory} is at epoch {epoch}; OPTIM.MAX_EPOCH is {trainer.max_epoch}")
    if epoch and cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST and not trainer.resumed_with_changes:
        restore_best(trainer, directory)
    if epoch == trainer.max_epoch:  # the run may have been killed before it removed them
        remove_old_checkpoints(trainer)
    return epoch


def remove_old_checkpoints(trainer) -> None:
    """Remove each model's timed checkpoints, and all but the last TRAIN.KEEP_CHECKPOINTS of the others (0: all stay).

    The newest and the best checkpoint always stay. Timed ones are ``model-latest.pth.tar-<epoch>``.
    """
    for name in trainer.get_model_names() if is_main_process() else ():
        remove_old_checkpoint_files(Path(trainer.output_dir, name), trainer.cfg.TRAIN.KEEP_CHECKPOINTS)


def restore_best(trainer, directory: str) -> None:
    """Copy each model's best checkpoint from ``directory`` to the output directory; set ``best_result`` to its result.

    If ``directory`` is the output directory, copies nothing, and sets ``best_result`` only if it is still infinite.
    Raises ``UserError`` if a best checkpoint is missing.
    """
    check_best_exists(trainer, directory)
    is_copy = Path(directory).resolve() != Path(trainer.output_dir).resolve()
    for name in trainer.get_model_names() if is_copy or math.isinf(trainer.best_result) else ():
        best = load_checkpoint(Path(directory, name, BEST_NAME))
        if best.get("val_result") is not None:
            trainer.best_result = best["val_result"]
        if is_copy and is_main_process():
            save_checkpoint(best, Path(trainer.output_dir, name), model_name=BEST_NAME)


def check_best_exists(trainer, directory: str) -> None:
    """Raise ``UserError`` unless ``directory`` holds the best checkpoint of every model."""
    for name in trainer.get_model_names():
        if not (path := Path(directory, name, BEST_NAME)).is_file():
            raise UserError(f"TEST.FINAL_MODEL is best_val, but there is no {path}: the run was trained without it")


def get_origin(trainer) -> dict[str, str]:
    """Return the origin of the trained parameters: what they depend on, which a resume compares. Computed once.

    Entries: ``settings``, the config as YAML; ``<split> images``, ``<split> image sizes`` and ``<split> decoding``, if
    it is not the original's, for each split but test;
    ``class names``, their SHA-256 digest, as no split shows a class without images; the digest of each file in
    ``trainer.provenance``, such as ``weights``, the pretrained model's; ``initial weights``, of MODEL.INIT_WEIGHTS.
    """
    if not hasattr(trainer, "_origin"):
        splits = {name: entry for name, entry in get_splits(trainer).items() if name != "test"}
        data = {f"{name} images": entry["sha256"] for name, entry in splits.items()}
        data |= {f"{name} image sizes": entry["sizes"] for name, entry in splits.items() if "sizes" in entry}
        decodings = {name: entry["decoding"] for name, entry in splits.items() if "decoding" in entry}
        data |= {f"{name} decoding": format_decoding(changes) for name, changes in decodings.items()}
        if data:
            classnames = json.dumps(list(trainer.dm.dataset.classnames))
            data["class names"] = hashlib.sha256(classnames.encode()).hexdigest()
        entries = ((name, entry) for name, entry in trainer.provenance.items() if isinstance(entry, dict))
        files = {name: entry["sha256"] for name, entry in entries if entry.get("sha256")}
        trainer._origin = {"settings": trainer.cfg.dump(), **data, **files}
        if (file := Path(trainer.cfg.MODEL.INIT_WEIGHTS)).is_file():
            trainer._origin["initial weights"] = file_digest(file)
    return trainer._origin


def get_splits(trainer) -> dict[str, dict]:
    """Return {"images": number of images, "sha256": their fingerprint} of each split by name, such as ``train_x``.

    Empty splits are left out; without a data set, returns {}. Computed once.
    """
    if not hasattr(trainer, "_splits"):
        inputs = get_image_root(trainer.cfg), get_decoding(trainer.cfg)
        trainer._splits = split_fingerprints(trainer.dm.dataset, *inputs) if hasattr(trainer, "dm") else {}
    return trainer._splits


def diff_origins(saved: dict[str, str], current: dict[str, str]) -> list[str]:
    """Return the changes between two origins (``get_origin``) as "name old -> new"; not of missing entries.

    Images of a split whose decoding is missing are decoded as in the original.
    """
    names = [name for name in current if name != "settings" and saved.get(name, current[name]) != current[name]]
    changes = [f"{name} {saved[name][:12]} -> {current[name][:12]}" for name in names if not name.endswith(" decoding")]
    decodings: dict[str, list[str]] = {}  # splits by "old -> new"
    for split in (name.removesuffix(" images") for name in saved if name.endswith(" images") and name in current):
        old, new = (origin.get(f"{split} decoding", format_decoding({})) for origin in (saved, current))
        if old != new:
            decodings.setdefault(f"{old} -> {new}", []).append(split)
    # The texts that checkpoints hold say "1 images".
    changes += [f"{' and '.join(s)} decoding: {text.replace('(1 images', '(1 image')}" for text, s in decodings.items()]
    settings = diff_configs(saved["settings"], current["settings"], default_cfg()) if "settings" in saved else {}
    return ([f"settings: {format_changes(settings)}"] if settings else []) + changes


def find_mismatches(trainer, saved: dict[str, str]) -> list[str]:
    """Return what decides the meaning of trained parameters and differs from their origin ``saved``: "KEY old -> new".

    This is the method, the pretrained weights, and the keys of the method's node but ``trainer.training_keys``. N_CTX
    does not count where the words of CTX_INIT set the number of context tokens. Without an origin, returns [].
    """
    if "settings" not in saved:  # a checkpoint of another program
        return []
    current, config, name = get_origin(trainer), dict(flatten(trainer.cfg)), "MODEL.BACKBONE.NAME"
    changes = diff_configs(saved["settings"], current["settings"], default_cfg())
    compared = ["TRAINER.NAME"] if "TRAINER.NAME" in changes else [key for key in config if key.startswith("TRAINER.")]
    mismatches = {}
    for key in (key for key in compared if key in changes):
        node, _, option = key.rpartition(".")
        words = f"{node}.CTX_INIT"
        is_set_by_words = option == "N_CTX" and any(changes.get(words, [config.get(words)]))
        if option not in trainer.training_keys and not is_set_by_words:
            mismatches[key] = changes[key]
    if "weights" in saved and "weights" in current:  # the digests decide, whatever the names are
        if saved["weights"] != current["weights"]:
            old_name, new_name = changes.get(name, [config[name]] * 2)
            old, new = (origin["weights"][:12] for origin in (saved, current))
            mismatches[f"{name} (weights)"] = f"{old_name} ({old})", f"{new_name} ({new})"
    elif name in changes:
        mismatches[name] = changes[name]
    return [format_changes({key: values}) for key, values in mismatches.items()]


def get_world_sizes(trainer) -> list[int]:
    """Return the numbers of processes that the run has had, each change once; the current number is the last."""
    earlier = list(trainer.earlier_world_sizes)
    return earlier if earlier[-1:] == [get_world_size()] else [*earlier, get_world_size()]
