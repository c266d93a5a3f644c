"""The output directory of a run: its lock, config, log and record; and the checks before a run."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from yacs.config import CfgNode

from dassl import __version__
from dassl.config import to_dict
from dassl.config.defaults import UNUSED_KEYS
from dassl.config.merge import flatten
from dassl.config.run_config import CONFIG_FILE, find_resume_conflicts, read_run_config
from dassl.data.datasets.fingerprint import SPLITS
from dassl.data.decoding import describe_deep_images, get_decoding
from dassl.distributed import all_gather_objects, get_device, get_world_size, is_main_process, run_on_main
from dassl.mkl import describe_cpu_sums
from dassl.utils import (
    atomic_write,
    check_at_least,
    check_availability,
    check_replaceable,
    file_digest,
    load_checkpoint,
    set_random_seed,
    write_json,
)
from dassl.utils.checkpoint import find_checkpoints
from dassl.utils.cost import CostMeter
from dassl.utils.env import collect_env_info, get_machine_info, get_package_versions, tune_malloc
from dassl.utils.errors import UserError, interrupted_error
from dassl.utils.logger import LOG_FILE, rotate_file, tee_stdout

from . import checkpoint
from .build import default_cfg, set_decoding
from .lock import exclusive_lock
from .predictions import write_predictions
from .record import PREDICTIONS_FILE, RECORD_FILE, code_version, read_training_record


def choose_evaluation_dir(cfg: CfgNode) -> str:
    """Return the folder for the results of ``--eval-only``: OUTPUT_DIR, or a folder in it if it is a training run's.

    So the run's log and record stay. The folder is ``eval-<data set>-<split>``, followed by ``-base`` or ``-new`` for
    a half of the classes.
    """
    folder, classes = Path(cfg.OUTPUT_DIR), cfg.DATASET.SUBSAMPLE_CLASSES
    signs = CONFIG_FILE, "*/checkpoint", "*/model*.pth.tar*"  # the last: prompts from elsewhere
    try:
        is_training_run = run_on_main(lambda: any(any(folder.glob(pattern)) for pattern in signs))
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {folder} for an earlier run: {error.strerror}") from error
    if not is_training_run:
        return cfg.OUTPUT_DIR
    name = "-".join(["eval", cfg.DATASET.NAME, cfg.TEST.SPLIT, *([] if classes == "all" else [classes])])
    return str(folder / name)


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
    if args.eval_only and Path(cfg.OUTPUT_DIR).name.startswith("eval-") and args.output_dir != cfg.OUTPUT_DIR:
        print(f"The results are in {cfg.OUTPUT_DIR}, as {Path(cfg.OUTPUT_DIR).parent} is the folder of a training run")
        if earlier := sorted(Path(cfg.OUTPUT_DIR).glob(f"{RECORD_FILE}-*")):
            print(f"The record of an earlier evaluation there has its date: {earlier[-1].name}")
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

    An earlier run's log, its record, ``result.json``, and its predictions are renamed with their dates, also by a
    resume, so that nobody takes their results for this run's. Only the main process locks and writes.

    Args:
        trains: whether the run trains; ``write_run_config`` then checks the settings and writes ``config.yaml``
        keep_record: whether an earlier run's record and predictions keep their names

    Raises ``UserError`` if another process holds the lock, the directory cannot be written, or, with ``trains``,
    it holds checkpoints of a run with other settings and FORCE_RESUME is False. Then no file has been renamed.
    """
    if not is_main_process():
        yield
        return
    with exclusive_lock(cfg.OUTPUT_DIR):
        records = [] if keep_record else [Path(cfg.OUTPUT_DIR, name) for name in (RECORD_FILE, PREDICTIONS_FILE)]
        check_replaceable(*records, Path(cfg.OUTPUT_DIR, LOG_FILE))
        conflicts = write_run_config(cfg) if trains else []
        for path in records:  # in this order: no record is ever without its predictions
            rotate_file(path)
        with tee_stdout(cfg.OUTPUT_DIR):
            for conflict in conflicts:
                print(f"--force-resume: {conflict}")
            yield


def write_run_config(cfg: CfgNode) -> list[str]:
    """Write OUTPUT_DIR's ``config.yaml``; return the conflicts with the run to resume (``find_resume_conflicts``).

    Raises ``UserError`` if there are conflicts without FORCE_RESUME; with it, a file beside checkpoints stays.
    DECODING_KEYS stay as in such a file, since what they change is compared only when the images are known.
    """
    folder = Path(cfg.OUTPUT_DIR)
    conflicts, has_checkpoints = find_resume_conflicts(cfg, default_cfg())
    if conflicts and not cfg.FORCE_RESUME:
        raise UserError(
            f"{' and '.join(conflicts)}. Choose another --output-dir (or --resume), or resume from these checkpoints "
            "with --force-resume (FORCE_RESUME True)"
        )
    # A forced run does not overwrite the config of the checkpoints that are in the folder already.
    if not (conflicts and has_checkpoints and (folder / CONFIG_FILE).is_file()):
        written = cfg.clone()
        if has_checkpoints and (saved := read_run_config(str(folder))):
            written.defrost()
            written.INPUT.WHITE_LEVEL, written.INPUT.ORIENTATION = -1, ""
            set_decoding(written, saved)
        with atomic_write(folder / CONFIG_FILE) as file:
            file.write(written.dump())
    return conflicts


def check_training_cfg(trainer) -> None:
    """Raise ``UserError`` for values of OPTIM, TRAIN and TEST that would fail only after hours of training."""
    cfg = trainer.cfg
    check_at_least(trainer.max_epoch, 1, "OPTIM.MAX_EPOCH")
    check_at_least(cfg.TRAIN.PRINT_FREQ, 1, "TRAIN.PRINT_FREQ")
    check_at_least(cfg.TRAIN.KEEP_CHECKPOINTS, 0, "TRAIN.KEEP_CHECKPOINTS")
    check_availability(cfg.TEST.FINAL_MODEL, ("last_step", "best_val"), "TEST.FINAL_MODEL")
    if len(getattr(trainer.dm.dataset, "classnames", ())) == 1:
        problem = f"{cfg.TRAINER.NAME} needs 2 classes or more; {cfg.DATASET.NAME} has 1"
        raise UserError(f"{problem}. A zero-shot method takes any number")
    if cfg.PROTOCOL == "none" and cfg.TEST.FINAL_MODEL == "best_val":
        raise UserError("TEST.FINAL_MODEL best_val chooses on validation images; with PROTOCOL none, set last_step")
    if not cfg.TEST.NO_TEST:
        trainer.get_loader(cfg.TEST.SPLIT)
        if cfg.TEST.FINAL_MODEL == "best_val":
            trainer.get_loader("val")


def check_evaluation(trainer, args: argparse.Namespace) -> None:
    """Raise ``UserError`` if ``--eval-only`` has no trained model, or one that was trained with other settings.

    It has a model by ``args.model_dir`` ("": not given) or MODEL.INIT_WEIGHTS. A zero-shot method needs none, nor one
    that registers no model. The settings are those that ``dassl.engine.checkpoint.find_mismatches`` compares. With
    ``args.allow_mismatch``, differing ones are printed, and set as ``trainer.allowed_mismatch`` for the record.
    """
    init_weights = trainer.cfg.MODEL.INIT_WEIGHTS
    if trainer.get_model_names() and not (args.model_dir or init_weights or trainer.supports_zero_shot):
        raise UserError(f"--eval-only with {trainer.cfg.TRAINER.NAME} needs --model-dir, the folder of a finished run")
    files = [Path(init_weights)] if init_weights else []
    for file in find_model_files(trainer, args.model_dir, args.load_epoch) if args.model_dir else files:
        try:
            mismatches = checkpoint.find_mismatches(trainer, load_checkpoint(file).get("origin", {}))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error!r}") from error
        if mismatches := mismatches + find_seen_classes(trainer, file):
            problem = f"{file} was trained with other settings: {'; '.join(mismatches)}"
            if not args.allow_mismatch:
                raise UserError(
                    f"{problem}. Evaluate it with those that it was trained with, or if you mean these, add "
                    "--allow-mismatch"
                )
            print(f"--allow-mismatch: {problem}")
            trainer.allowed_mismatch = tuple(dict.fromkeys([*trainer.allowed_mismatch, *mismatches]))


def find_seen_classes(trainer, file: Path) -> list[str]:
    """Return a sentence if classes that SUBSAMPLE_CLASSES calls new are classes of the run that trained ``file``.

    The run's record, if there is one, has its classes.
    """
    dataset, record = trainer.cfg.DATASET, {}
    if dataset.SUBSAMPLE_CLASSES != "new":
        return []
    with contextlib.suppress(UserError):
        record = read_training_record(file.absolute().parents[1])
    if record.get("dataset") != dataset.NAME:
        return []
    seen = [name for name in trainer.dm.dataset.classnames if name in record.get("classnames", ())]
    return [f"it was trained on {len(seen)} of the new classes ({', '.join(seen[:5])})"] if seen else []


def find_model_files(trainer, model_dir: str, epoch: int | None) -> list[Path]:
    """Return the checkpoints of ``epoch`` in ``model_dir`` (None: the best, else the newest), one of each model.

    Returns [] if one is missing: ``load_model`` reports it, or a trainer's own ``load_model`` reads other files.
    """
    with contextlib.suppress(UserError):
        return [*find_checkpoints(model_dir, trainer.get_model_names(), epoch).values()]
    return []


# ---- the record of a run ----


@contextmanager
def record_run(
    trainer, args: argparse.Namespace, command: list[str], code_paths: Sequence[str], cost: CostMeter
) -> Iterator[None]:
    """Write the record, ``result.json``, after the body of a ``with``: the results, and all that repeating them needs.

    If the body raises, no record is written. A Ctrl-C in it gets a message: where the run stopped, and the command that
    resumes it.

    Args:
        args: the parsed arguments of the program; ``eval_only``, ``model_dir`` and ``load_epoch`` are read
        command: the program's arguments as words
        code_paths: the program's file, then the names of the folders beside it that hold the run's code
        cost: made when the program started
    """
    program = Path(code_paths[0])
    version = code_version(program.resolve().parent, (*code_paths[1:], program.name))
    inputs = get_inputs(trainer, args.model_dir if args.eval_only else "", args.load_epoch)
    dataset = trainer.dm.dataset
    splits = SPLITS if getattr(dataset, "has_images", True) else ()
    paths = dict.fromkeys(item.impath for name in splits for item in getattr(dataset, name, None) or ())
    if note := describe_deep_images([*paths], get_decoding(trainer.cfg)):
        print(note)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        resumes = f"after epoch {trainer.last_saved_epoch}" if trainer.last_saved_epoch else "from the beginning"
        position = f"in epoch {trainer.epoch + 1} of {trainer.max_epoch}"
        raise interrupted_error(position, resumes, str(program), command) from interrupt
    finally:
        trainer.close_writer()  # of a run that failed; others have closed it
    inputs["eval_only"] = args.eval_only
    write_record(trainer, cost.read(), command, version, inputs)


def get_inputs(trainer, model_dir: str = "", epoch: int | None = None) -> dict:
    """Return the record's ``splits``, ``few_shot_split`` and ``started_from`` (checkpoint files); call before training.

    The files are MODEL.INIT_WEIGHTS, and those in ``model_dir`` of ``epoch`` (from 1; None: the best, else the newest),
    or without ``model_dir``, those of RESUME.
    """
    cfg, names = trainer.cfg, trainer.get_model_names()
    files = [Path(cfg.MODEL.INIT_WEIGHTS)] if cfg.MODEL.INIT_WEIGHTS else []
    if model_dir:
        files += find_model_files(trainer, model_dir, epoch)
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


def write_record(trainer, cost: dict, command: list[str], code: dict, inputs: dict) -> None:
    """Write ``predictions.csv`` and ``result.json`` of a run, on the main process.

    ``cost`` is the result of ``CostMeter.read``, ``command`` the program's arguments, ``code`` the result of
    ``code_version``, ``inputs`` that of ``get_inputs``. ``resumed_epoch``: this process trained only the epochs
    after it, and ``cost`` is that of these.
    """
    cfg = trainer.cfg
    splits = {name: {**entry, **_content_checksum(trainer, name)} for name, entry in inputs["splits"].items()}
    bad_images = getattr(trainer.dm, "bad_images", {})
    world_sizes = checkpoint.get_world_sizes(trainer)  # more than one if the number of processes changed at a resume
    # A model may find out by itself that a checkpoint was trained with something else, and be told to accept it.
    mismatches = [*trainer.allowed_mismatch]
    mismatches += [text for model in trainer._models.values() for text in getattr(model, "allowed_mismatch", ())]
    record = {
        **(trainer.results or {"accuracy": None}),
        **_result_counts(trainer),
        **({"bad_images": bad_images} if bad_images else {}),
        **({"forced": list(trainer.forced)} if trainer.forced else {}),
        **({"allowed_mismatch": mismatches} if mismatches else {}),
        "split": cfg.TEST.SPLIT,
        "trainer": cfg.TRAINER.NAME,
        "method": vars(type(trainer)).get("display_name") or cfg.TRAINER.NAME,  # not that of a base class
        "group": vars(type(trainer)).get("group", ""),
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "models": trainer.get_model_names(),
        **_train_images_per_class(trainer),
        "trainable_parameters": trainer.num_trainable_parameters(),
        **get_provenance(trainer),
        **inputs,
        "splits": splits,
        **cost,
        **({"resumed_epoch": epoch} if (epoch := getattr(trainer, "start_epoch", 0)) else {}),
        "code": code,
        "versions": {"dassl": __version__, **get_package_versions()},
        "machine": {"device": str(trainer.device), **get_machine_info(), "sums": _describe_sums(trainer)},
        **({} if world_sizes == [1] else {"processes": world_sizes if len(world_sizes) > 1 else world_sizes[0]}),
        "command": command,
        "config": to_dict(cfg),
    }
    if is_main_process():
        write_predictions(trainer)
        write_json(record, Path(cfg.OUTPUT_DIR, RECORD_FILE))


def _result_counts(trainer) -> dict[str, int]:
    """Return the numbers of ``correct`` and of all (``total``) test images; {} if the test measured no accuracy."""
    names = ("correct", "total") if "accuracy" in (trainer.results or {}) else ()
    return {name: getattr(trainer.evaluator, f"_{name}") for name in names if hasattr(trainer.evaluator, f"_{name}")}


def _describe_sums(trainer) -> str:
    """Return what the last bits of the run's sums depend on: the GPU's name, or the mode of MKL on a CPU.

    On a CPU, PyTorch's gradients of convolution and layer-norm weights depend on the number of threads, too.
    """
    if trainer.device.type == "cuda":
        return torch.cuda.get_device_name(trainer.device)
    modules = (module for model in trainer._models.values() for module in model.modules())
    layers = (module for module in modules if isinstance(module, (_ConvNd, nn.LayerNorm)))
    return describe_cpu_sums(any(p.requires_grad for layer in layers for p in layer.parameters(recurse=False)))


def _train_images_per_class(trainer) -> dict[str, list[int]]:
    """Return the [fewest, most] training images of a class, by the record's key; {} for a data set without classes."""
    dataset = trainer.dm.dataset
    counts = Counter(item.label for item in dataset.train_x)
    images = [counts[label] for label in range(dataset.num_classes)] if dataset.classnames else []
    return {"train_images_per_class": [min(images), max(images)]} if images else {}


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
