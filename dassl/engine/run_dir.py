"""The output directory of a run: one process at a time, one run with one set of settings, a log and a record of it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from yacs.config import CfgNode

from dassl import __version__
from dassl.config import to_dict
from dassl.config.defaults import UNUSED_KEYS
from dassl.config.merge import flatten
from dassl.config.run_config import CONFIG_FILE, find_resume_conflicts, read_run_seed
from dassl.distributed import all_gather_objects, get_device, get_world_size, is_main_process, run_on_main
from dassl.utils import atomic_write, check_at_least, check_availability, file_digest, set_random_seed, write_json
from dassl.utils.checkpoint import find_checkpoint
from dassl.utils.env import collect_env_info, get_machine_info, get_package_versions, tune_malloc
from dassl.utils.errors import UserError, interrupted_error
from dassl.utils.logger import rotate_file, tee_stdout

from . import checkpoint
from .build import default_cfg
from .lock import exclusive_lock
from .record import RECORD_FILE, code_version


def choose_seed(cfg: CfgNode) -> int:
    """Return SEED; where that is negative, the seed of the run that the output directory holds, or a new one."""
    try:
        seed = cfg.SEED if cfg.SEED >= 0 else run_on_main(lambda: read_run_seed(cfg.OUTPUT_DIR, cfg.RESUME))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {cfg.OUTPUT_DIR} for an earlier run: {error.strerror}") from error
    if type(seed) is not int:
        seed = run_on_main(lambda: time.time_ns() % 2**31)
    if seed >= 2**63:
        raise UserError(f"the seed {seed} is too large; PyTorch takes up to {2**63 - 1}")
    return seed


def setup_environment(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Log the arguments, the settings and the machine; choose the device; seed the generators; make a run repeatable.

    Each epoch seeds them anew (``TrainerBase.epoch``). The threads are those that PyTorch takes (OMP_NUM_THREADS), or
    that the caller of ``train.main`` has set.
    """
    tune_malloc()
    print("***************\n** Arguments **\n***************")
    for key, value in sorted(vars(args).items()):
        print(f"{key}: {value}")
    print(f"************\n** Config **\n************\n{cfg}")
    print(f"** System info **\n{collect_env_info()}\n")
    if get_world_size() > 1:
        print(f"Processes: {get_world_size()}, each with its part of every batch")
    print(f"Device: {get_device(cfg.USE_CUDA)}, threads: {torch.get_num_threads()}")
    if args.model_dir and not args.eval_only:
        print("Note: --model-dir is for --eval-only; training starts from --resume or MODEL.INIT_WEIGHTS")
    default = dict(flatten(default_cfg()))
    for key, value in flatten(cfg):
        if key in UNUSED_KEYS and value != default[key]:
            print(f"Note: {key} {value} does nothing, unless code of your own reads it")
    print(f"Setting fixed seed: {cfg.SEED}")
    set_random_seed(cfg.SEED)
    torch.backends.cudnn.deterministic = True  # the same convolutions in every run


@contextmanager
def run_directory(cfg: CfgNode, trains: bool, keep_record: bool = False) -> Iterator[None]:
    """Lock the output directory for the body of a ``with``, and send what is printed to its ``log.txt``, too.

    A run that trains writes ``config.yaml``. An earlier log and record are set aside, so that nobody takes their result
    for this run's. Only the main process does any of this.

    Args:
        keep_record: leave the record of an earlier run where it is.

    Raises:
        UserError: another process is in the directory; it cannot be written; or it holds checkpoints of a run with
            other settings, and FORCE_RESUME is False.
    """
    if not is_main_process():
        yield
        return
    with exclusive_lock(cfg.OUTPUT_DIR):
        objections = check_run_dir(cfg) if trains else []
        if not keep_record:
            rotate_file(Path(cfg.OUTPUT_DIR, RECORD_FILE))
        with tee_stdout(cfg.OUTPUT_DIR):
            for objection in objections:
                print(f"--force-resume: {objection}")
            yield


def check_run_dir(cfg: CfgNode) -> list[str]:
    """Write ``config.yaml``; return how the settings differ from those of the checkpoints that the run goes on from.

    Raises:
        UserError: they differ, and FORCE_RESUME is False.
    """
    folder = Path(cfg.OUTPUT_DIR)
    objections, has_checkpoints = find_resume_conflicts(cfg, default_cfg())
    if objections and not cfg.FORCE_RESUME:
        raise UserError(
            f"{' and '.join(objections)}. Choose another --output-dir (or --resume), or go on from what is there with "
            "--force-resume"
        )
    if not (objections and has_checkpoints and (folder / CONFIG_FILE).is_file()):  # it tells of the checkpoints there
        with atomic_write(folder / CONFIG_FILE) as file:
            file.write(cfg.dump())
    return objections


def check_training_cfg(trainer) -> None:
    """Raise :class:`UserError` for settings that would only fail after hours of training."""
    c = trainer.cfg
    check_at_least(trainer.max_epoch, 1, "OPTIM.MAX_EPOCH")
    check_at_least(c.TRAIN.PRINT_FREQ, 1, "TRAIN.PRINT_FREQ")
    check_at_least(c.TRAIN.KEEP_CHECKPOINTS, 0, "TRAIN.KEEP_CHECKPOINTS")
    check_availability(c.TEST.FINAL_MODEL, ("last_step", "best_val"), "TEST.FINAL_MODEL")
    if not c.TEST.NO_TEST:
        trainer.get_loader(c.TEST.SPLIT)
        if c.TEST.FINAL_MODEL == "best_val":
            trainer.get_loader("val")


def check_evaluation(trainer, model_dir: str) -> None:
    """Raise :class:`UserError` where there is no trained model to evaluate."""
    has_model = model_dir or trainer.cfg.MODEL.INIT_WEIGHTS or trainer.supports_zero_shot
    if trainer.get_model_names() and not has_model:
        raise UserError(f"--eval-only with {trainer.cfg.TRAINER.NAME} needs --model-dir, the folder of a finished run")


# ---- the record ----


@contextmanager
def record_run(
    trainer, args: argparse.Namespace, command: list[str], code: Sequence[str], start: float
) -> Iterator[None]:
    """Write ``result.json`` after the body of a ``with``: what the run gave and what it was, enough to do it again.

    Its presence tells a finished run. Ctrl-C says where the run stopped and which command goes on.

    Args:
        args: the parsed arguments of the program.
        command: the arguments.
        code: the program's file, then the names of the folders beside it that the run is made of.
        start: when the program was started.
    """
    version = code_version(Path(code[0]).resolve().parent, (*code[1:], Path(code[0]).name))
    inputs = get_inputs(trainer, args.model_dir if args.eval_only else "", args.load_epoch)
    try:
        yield
    except KeyboardInterrupt as stop:
        done = f"after epoch {trainer.last_saved_epoch}" if trainer.last_saved_epoch else "from the beginning"
        raise interrupted_error(
            f"in epoch {trainer.epoch + 1} of {trainer.max_epoch}", done, str(code[0]), command
        ) from stop
    write_record(trainer, round(time.time() - start, 2), command, version, inputs)


def get_inputs(trainer, model_dir: str = "", epoch: int | None = None) -> dict:
    """Return what a run is made from, before it trains: its splits, and checkpoints that it starts from."""
    cfg, names = trainer.cfg, trainer.get_model_names()
    files = [Path(cfg.MODEL.INIT_WEIGHTS)] if cfg.MODEL.INIT_WEIGHTS else []
    if model_dir:
        with contextlib.suppress(UserError):  # whoever loads it says so, or looks for other files
            files += [find_checkpoint(Path(model_dir, name), epoch) for name in names]
    elif cfg.RESUME and Path(cfg.RESUME).resolve() != Path(cfg.OUTPUT_DIR).resolve():
        files += checkpoint.latest_common_checkpoints(cfg.RESUME, names)
    return {
        "splits": checkpoint.get_splits(trainer),
        "few_shot_split": getattr(trainer.dm.dataset, "split_source", None),
        "started_from": [{"file": str(file), "sha256": file_digest(file)} for file in files if file.is_file()],
    }


def get_provenance(trainer) -> dict:
    """Return the trainer's provenance, with the number of all parameters for that of the frozen ones."""
    provenance = dict(trainer.provenance)
    if "frozen_parameters" in provenance:
        provenance["total_parameters"] = provenance.pop("frozen_parameters") + trainer.trainable_parameters()
    return provenance


def write_record(trainer, seconds: float, command: list[str], code: dict, inputs: dict) -> None:
    cfg = trainer.cfg
    splits = {name: {**entry, **_content_checksum(trainer, name)} for name, entry in inputs["splits"].items()}
    bad_images = getattr(trainer.dm, "bad_images", {})
    processes = checkpoint.get_world_sizes(trainer)  # a list of several for a run that went on with another number
    record = {
        **(trainer.results or {"accuracy": None}),
        **_result_counts(trainer),
        **({"bad_images": bad_images} if bad_images else {}),
        **({"forced": list(trainer.forced)} if trainer.forced else {}),
        "split": cfg.TEST.SPLIT,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "trainable_parameters": trainer.trainable_parameters(),
        **get_provenance(trainer),
        **inputs,
        "splits": splits,
        "seconds": seconds,
        "code": code,
        "versions": {"dassl": __version__, **get_package_versions()},
        "machine": {"device": str(trainer.device), **get_machine_info()},
        **({} if processes == [1] else {"processes": processes if len(processes) > 1 else processes[0]}),
        "command": command,
        "config": to_dict(cfg),
    }
    if is_main_process():
        write_json(record, Path(cfg.OUTPUT_DIR, RECORD_FILE))


def _result_counts(trainer) -> dict[str, int]:
    """Return how many of how many images were right, where the result is an accuracy."""
    names = ("correct", "total") if "accuracy" in (trainer.results or {}) else ()
    return {name: getattr(trainer.evaluator, f"_{name}") for name in names if hasattr(trainer.evaluator, f"_{name}")}


def _content_checksum(trainer, split: str) -> dict[str, str]:
    """Return a checksum over those of a split's image files, in their order, if the run knows all of these."""
    loader = getattr(trainer, checkpoint.LOADER_NAMES[split], None)
    checksums = {}
    for known in all_gather_objects(getattr(getattr(loader, "dataset", None), "contents", {})):
        checksums |= known
    if not checksums:
        return {}
    contents = [checksums.get(item.impath) for item in loader.dataset.data_source]
    return {} if None in contents else {"content": hashlib.sha256("".join(contents).encode()).hexdigest()}
