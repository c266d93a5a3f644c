"""The output directory of a run: its lock, config, log and record; and the checks before a run."""

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
from dassl.utils.checkpoint import find_checkpoints
from dassl.utils.env import collect_env_info, get_machine_info, get_package_versions, tune_malloc
from dassl.utils.errors import UserError, interrupted_error
from dassl.utils.logger import rotate_file, tee_stdout

from . import checkpoint
from .build import default_cfg
from .lock import exclusive_lock
from .record import RECORD_FILE, code_version


def choose_seed(cfg: CfgNode) -> int:
    """Return SEED; if it is negative, the seed of the run to resume; without such a run, a new seed from the clock.

    Raises :class:`UserError` if the seed is too large for PyTorch, or the output directory cannot be read.
    """
    try:
        seed = cfg.SEED if cfg.SEED >= 0 else run_on_main(lambda: read_run_seed(cfg.OUTPUT_DIR, cfg.RESUME))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {cfg.OUTPUT_DIR} for an earlier run: {error.strerror}") from error
    if type(seed) is not int:
        seed = run_on_main(lambda: time.time_ns() % 2**31)
    if seed >= 2**63:
        raise UserError(f"the seed {seed} is too large; PyTorch takes up to {2**63 - 1}")
    return seed


def setup_run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Print the program's ``args``, the config and the machine, then seed all random generators with SEED.

    Each epoch seeds the generators again (``TrainerBase.epoch``). The number of threads is PyTorch's default
    (OMP_NUM_THREADS) or that set by the caller of ``train.main``.
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
    defaults = dict(flatten(default_cfg()))
    for key, value in flatten(cfg):
        if key in UNUSED_KEYS and value != defaults[key]:
            print(f"Note: {key} {value} does nothing, unless code of your own reads it")
    print(f"Setting fixed seed: {cfg.SEED}")
    set_random_seed(cfg.SEED)
    torch.backends.cudnn.deterministic = True  # so that a run can be repeated


@contextmanager
def run_directory(cfg: CfgNode, trains: bool, keep_record: bool = False) -> Iterator[None]:
    """Lock the output directory for the body of a ``with``, and copy standard output to its ``log.txt``.

    An earlier run's log and its record, ``result.json``, are renamed with their dates, also by a resume, so that nobody
    takes their results for this run's. Only the main process locks and writes.

    Args:
        trains: whether the run trains; :func:`write_run_config` then checks the settings and writes ``config.yaml``
        keep_record: whether an earlier run's ``result.json`` keeps its name

    Raises :class:`UserError` if another process holds the lock, the directory cannot be written, or, with ``trains``,
    it holds checkpoints of a run with other settings and FORCE_RESUME is False.
    """
    if not is_main_process():
        yield
        return
    with exclusive_lock(cfg.OUTPUT_DIR):
        conflicts = write_run_config(cfg) if trains else []
        if not keep_record:
            rotate_file(Path(cfg.OUTPUT_DIR, RECORD_FILE))
        with tee_stdout(cfg.OUTPUT_DIR):
            for conflict in conflicts:
                print(f"--force-resume: {conflict}")
            yield


def write_run_config(cfg: CfgNode) -> list[str]:
    """Write OUTPUT_DIR's ``config.yaml``; return the conflicts with the run to resume (:func:`find_resume_conflicts`).

    Raises :class:`UserError` if there are conflicts without FORCE_RESUME; with it, a file beside checkpoints stays.
    """
    folder = Path(cfg.OUTPUT_DIR)
    conflicts, has_checkpoints = find_resume_conflicts(cfg, default_cfg())
    if conflicts and not cfg.FORCE_RESUME:
        raise UserError(
            f"{' and '.join(conflicts)}. Choose another --output-dir (or --resume), or resume from these checkpoints "
            "with --force-resume"
        )
    # A forced run does not overwrite the config of the checkpoints that are in the folder already.
    if not (conflicts and has_checkpoints and (folder / CONFIG_FILE).is_file()):
        with atomic_write(folder / CONFIG_FILE) as file:
            file.write(cfg.dump())
    return conflicts


def check_training_cfg(trainer) -> None:
    """Raise :class:`UserError` for values of OPTIM, TRAIN and TEST that would fail only after hours of training."""
    cfg = trainer.cfg
    check_at_least(trainer.max_epoch, 1, "OPTIM.MAX_EPOCH")
    check_at_least(cfg.TRAIN.PRINT_FREQ, 1, "TRAIN.PRINT_FREQ")
    check_at_least(cfg.TRAIN.KEEP_CHECKPOINTS, 0, "TRAIN.KEEP_CHECKPOINTS")
    check_availability(cfg.TEST.FINAL_MODEL, ("last_step", "best_val"), "TEST.FINAL_MODEL")
    if not cfg.TEST.NO_TEST:
        trainer.get_loader(cfg.TEST.SPLIT)
        if cfg.TEST.FINAL_MODEL == "best_val":
            trainer.get_loader("val")


def check_evaluation(trainer, model_dir: str) -> None:
    """Raise :class:`UserError` if ``--eval-only`` has no trained model to evaluate.

    It has one by ``model_dir`` ("": not given) or MODEL.INIT_WEIGHTS. A zero-shot method needs none, nor one that
    registers no model.
    """
    has_model = model_dir or trainer.cfg.MODEL.INIT_WEIGHTS or trainer.supports_zero_shot
    if trainer.get_model_names() and not has_model:
        raise UserError(f"--eval-only with {trainer.cfg.TRAINER.NAME} needs --model-dir, the folder of a finished run")


# ---- the record of a run ----


@contextmanager
def record_run(
    trainer, args: argparse.Namespace, command: list[str], code_paths: Sequence[str], start_time: float
) -> Iterator[None]:
    """Write the record, ``result.json``, after the body of a ``with``: the results, and all that repeating them needs.

    If the body raises, no record is written. A Ctrl-C in it gets a message: where the run stopped, and the command that
    resumes it.

    Args:
        args: the parsed arguments of the program; ``eval_only``, ``model_dir`` and ``load_epoch`` are read
        command: the program's arguments as words
        code_paths: the program's file, then the names of the folders beside it that hold the run's code
        start_time: the ``time.time()`` at which the program started
    """
    program = Path(code_paths[0])
    version = code_version(program.resolve().parent, (*code_paths[1:], program.name))
    inputs = get_inputs(trainer, args.model_dir if args.eval_only else "", args.load_epoch)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        resumes = f"after epoch {trainer.last_saved_epoch}" if trainer.last_saved_epoch else "from the beginning"
        position = f"in epoch {trainer.epoch + 1} of {trainer.max_epoch}"
        raise interrupted_error(position, resumes, str(program), command) from interrupt
    write_record(trainer, round(time.time() - start_time, 2), command, version, inputs)


def get_inputs(trainer, model_dir: str = "", epoch: int | None = None) -> dict:
    """Return the record's ``splits``, ``few_shot_split`` and ``started_from`` (checkpoint files); call before training.

    The files are MODEL.INIT_WEIGHTS, and those in ``model_dir`` of ``epoch`` (from 1; None: the best, else the newest),
    or without ``model_dir``, those of RESUME.
    """
    cfg, names = trainer.cfg, trainer.get_model_names()
    files = [Path(cfg.MODEL.INIT_WEIGHTS)] if cfg.MODEL.INIT_WEIGHTS else []
    if model_dir:
        with contextlib.suppress(UserError):  # load_model reports it, or a trainer's own load_model has other files
            files += find_checkpoints(model_dir, names, epoch).values()
    elif cfg.RESUME and Path(cfg.RESUME).resolve() != Path(cfg.OUTPUT_DIR).resolve():
        files += checkpoint.latest_common_checkpoints(cfg.RESUME, names)
    return {
        "splits": checkpoint.get_splits(trainer),
        "few_shot_split": getattr(trainer.dm.dataset, "split_source", None),
        "started_from": [{"file": str(file), "sha256": file_digest(file)} for file in files if file.is_file()],
    }


def get_provenance(trainer) -> dict:
    """Return a copy of ``trainer.provenance``, entries for the record that ``build_model`` sets.

    ``total_parameters``, frozen and trained, replaces ``frozen_parameters``.
    """
    provenance = dict(trainer.provenance)
    if "frozen_parameters" in provenance:
        provenance["total_parameters"] = provenance.pop("frozen_parameters") + trainer.num_trainable_parameters()
    return provenance


def write_record(trainer, seconds: float, command: list[str], code: dict, inputs: dict) -> None:
    """Write ``result.json`` of a run that took ``seconds``, on the main process; ``command``: the program's arguments.

    ``code`` is the result of :func:`code_version`, ``inputs`` that of :func:`get_inputs`.
    """
    cfg = trainer.cfg
    splits = {name: {**entry, **_content_checksum(trainer, name)} for name, entry in inputs["splits"].items()}
    bad_images = getattr(trainer.dm, "bad_images", {})
    world_sizes = checkpoint.get_world_sizes(trainer)  # more than one if the number of processes changed at a resume
    record = {
        **(trainer.results or {"accuracy": None}),
        **_result_counts(trainer),
        **({"bad_images": bad_images} if bad_images else {}),
        **({"forced": list(trainer.forced)} if trainer.forced else {}),
        "split": cfg.TEST.SPLIT,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "trainable_parameters": trainer.num_trainable_parameters(),
        **get_provenance(trainer),
        **inputs,
        "splits": splits,
        "seconds": seconds,
        "code": code,
        "versions": {"dassl": __version__, **get_package_versions()},
        "machine": {"device": str(trainer.device), **get_machine_info()},
        **({} if world_sizes == [1] else {"processes": world_sizes if len(world_sizes) > 1 else world_sizes[0]}),
        "command": command,
        "config": to_dict(cfg),
    }
    if is_main_process():
        write_json(record, Path(cfg.OUTPUT_DIR, RECORD_FILE))


def _result_counts(trainer) -> dict[str, int]:
    """Return the numbers of ``correct`` and of all (``total``) test images; {} if the test measured no accuracy."""
    names = ("correct", "total") if "accuracy" in (trainer.results or {}) else ()
    return {name: getattr(trainer.evaluator, f"_{name}") for name in names if hasattr(trainer.evaluator, f"_{name}")}


def _content_checksum(trainer, split: str) -> dict[str, str]:
    """Return {"content": SHA-256 over the checksums of all image files of ``split``, such as ``train_x``, in order}.

    Returns {} if a checksum is unknown: only a loader of image features has them, of the images it has served.
    """
    dataset = getattr(getattr(trainer, checkpoint.LOADER_NAMES[split], None), "dataset", None)
    checksums: dict[str, str] = {}
    for contents in all_gather_objects(getattr(dataset, "contents", {})):
        checksums |= contents
    paths = [item.impath for item in dataset.data_source] if dataset is not None and checksums else []
    if not paths or not checksums.keys() >= {*paths}:
        return {}
    return {"content": hashlib.sha256("".join(checksums[path] for path in paths).encode()).hexdigest()}
