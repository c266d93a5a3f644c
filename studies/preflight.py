"""The checks before a sweep's first run, so that one cause is one message and not a failure of every run."""

from __future__ import annotations

import contextlib
import io
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

import train
from dassl import engine
from dassl.config.run_config import find_resume_conflicts
from dassl.utils import UserError

from .grid import Trial

if TYPE_CHECKING:  # it loads PyTorch, which a list of trials does not need
    from trainers.inputs import CurrentInputs


@dataclass(frozen=True)
class Plan:
    """A trial that will run, with its parsed arguments and its config."""

    trial: Trial
    args: Namespace
    cfg: CfgNode


@contextlib.contextmanager
def name_trial(trial: Trial) -> Iterator[None]:
    """Add to a ``UserError`` in the body of a ``with`` that ``trial`` would fail, and discard standard output."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            yield
    except (UserError, SystemExit) as error:  # argparse prints its message and exits
        message = error if isinstance(error, UserError) else (errors.getvalue().splitlines() or [""])[-1]
        raise UserError(f"no run was started, as {trial.folder} would fail: {message}") from error


def plan_trials(trials: Sequence[Trial], reasons: dict[Path, str]) -> dict[str, list[Plan]]:
    """Return the plans of trials in groups that differ only in seed, folder and number of shots.

    ``reasons`` are those of ``find_unfinished``.

    Raises:
        UserError: a trial's arguments or config are wrong, or it would resume from checkpoints of another run.
    """
    groups: dict[str, list[Plan]] = {}
    for trial in trials:
        with name_trial(trial):
            args = train.parse_args(list(trial.command))
            cfg = train.setup_cfg(args)
            if not args.eval_only and not cfg.FORCE_RESUME:
                conflicts, has_checkpoints = find_resume_conflicts(cfg, engine.default_cfg())
                if has_checkpoints and is_trained_on_others(reasons[trial.folder]):
                    conflicts.append(f"{trial.folder} holds checkpoints, and there are {reasons[trial.folder]}")
                if conflicts:
                    remedy = "Choose another --output-dir, or resume from these checkpoints with FORCE_RESUME True"
                    raise UserError(f"{' and '.join(conflicts)}. {remedy}")
        kind = cfg.clone()
        kind.defrost()
        kind.OUTPUT_DIR, kind.RESUME, kind.SEED, kind.DATASET.NUM_SHOTS = "", "", 0, min(cfg.DATASET.NUM_SHOTS, 1)
        groups.setdefault(f"{args.eval_only} {kind.dump()}", []).append(Plan(trial, args, cfg))
    return groups


def is_trained_on_others(reason: str) -> bool:
    """Return whether a reason of ``find_unfinished`` names inputs of the training, not of the test alone."""
    from trainers.inputs import SPLIT_NAMES

    return reason.startswith("other ") and any(name in reason for name in (*SPLIT_NAMES.values(), "weights"))


def check_inputs(groups: dict[str, list[Plan]], inputs: CurrentInputs) -> None:
    """Raise ``UserError`` if data or weights of a group cannot be read; no model is built."""
    for plan, *_ in groups.values():
        with name_trial(plan.trial):
            inputs.read_data(plan.cfg)
            if plan.cfg.MODEL.BACKBONE.NAME:
                inputs.read_weights(plan.cfg)


def check_and_estimate(groups: dict[str, list[Plan]], folders: Collection[Path], jobs: int, threads: int) -> str:
    """Build the trainer of each group once; return an estimate of the time that all trials take on this machine.

    Args:
        folders: folders of the trials that will run: a model that one of them trains need not exist yet.
        jobs: number of trials that run at a time, with ``threads`` threads each.

    Raises:
        UserError: a trainer cannot be built, or a model to evaluate cannot be loaded.
    """
    import torch
    from tqdm import tqdm

    from dassl.utils import temporary_seed

    from .estimate import Estimate

    torch.set_num_threads(threads)
    estimate = Estimate()
    bar = tqdm(groups.values(), disable=None, leave=False, desc="checking the runs", unit="kind")
    for plans in bar:
        largest = max(plans, key=lambda plan: plan.cfg.DATASET.NUM_SHOTS)  # its batches are full
        with temporary_seed(0):
            start = time.perf_counter()
            with name_trial(largest.trial):
                trainer = engine.build_trainer(largest.cfg)
            estimate.measure(trainer, time.perf_counter() - start)
            for plan in plans:
                with name_trial(plan.trial):
                    _check_model(trainer, plan, folders)
                estimate.add(trainer, plan.cfg, plan.args.eval_only)
    return estimate.format(jobs)


def _check_model(trainer, plan: Plan, folders: Collection[Path]) -> None:
    """Raise ``UserError`` if the settings of the training are unusable, or there is no model to evaluate."""
    from dassl.engine.run_dir import check_training_cfg

    args = plan.args
    if args.eval_only:
        engine.check_evaluation(trainer, args)
        if plan.trial.model_dir not in folders:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
    elif trainer.get_model_names():
        check_training_cfg(trainer)
