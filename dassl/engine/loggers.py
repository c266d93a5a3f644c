"""Loggers: hooks that keep a run's metrics where TRAIN.LOGGERS says: TensorBoard, a CSV file, Weights & Biases.

Each gets every number of ``trainer.write_scalar``. One of your own is a class in LOGGERS.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from yacs.config import CfgNode

from dassl.config import to_dict
from dassl.utils import UserError, atomic_write, check_availability, import_optional, mkdir_if_missing, relpath

from .hooks import HookBase

METRICS_FILE = "metrics.csv"
COLUMNS = ("step", "epoch", "tag", "value")
DEFAULT_PROJECT = "coop-dassl"  # on Weights & Biases, of a run whose folder is in no folder of a study


class MetricsLogger(HookBase):
    """A logger, open on the main process alone; beside the methods here, a hook's are called, on every process."""

    package = ""  # that the logger needs and requirements.txt does not have, as pip and ``import`` call it

    def open(self, trainer, log_dir: str) -> None:
        """Prepare to log the run of ``trainer``; ``log_dir`` is TensorBoard's folder. Here, do nothing."""

    def write_scalar(self, trainer, tag: str, value: float, step: int | None) -> None:
        """Log ``value``. A ``train/…`` tag has the run's batches, from 0, as steps, the others have epochs."""
        raise NotImplementedError

    def close(self, trainer) -> None:
        """Finish, also where the run has failed; here, do nothing."""


class TensorBoardLogger(MetricsLogger):
    """Writes for TensorBoard, by ``trainer._writer``, as trainers written for Dassl call it."""

    def open(self, trainer, log_dir: str) -> None:
        """Create ``trainer._writer``, a SummaryWriter in the folder ``log_dir``."""
        from torch.utils.tensorboard import SummaryWriter

        print(f"Initialize tensorboard (log_dir={log_dir})")
        mkdir_if_missing(log_dir)
        trainer._writer = SummaryWriter(log_dir=log_dir)

    def write_scalar(self, trainer, tag: str, value: float, step: int | None) -> None:
        """Write the number."""
        trainer._writer.add_scalar(tag, value, step)

    def close(self, trainer) -> None:
        """Close the writer."""
        trainer._writer.close()
        trainer._writer = None


class CSVLogger(MetricsLogger):
    """Writes a row for each number to METRICS_FILE in the run's folder; epochs count from 1.

    The file has each row once: a resume removes those that it will write again, and a new run all.
    """

    def open(self, trainer, log_dir: str) -> None:
        """Rewrite the file with the rows that stay, and open it for more."""
        path = Path(trainer.output_dir, METRICS_FILE)
        rows = [*_find_kept_rows(path, trainer)]
        with atomic_write(path) as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        # Line buffering: the rows of a killed run are complete. The file is open as long as the run lasts.
        self.file = open(path, "a", encoding="utf-8", newline="", buffering=1)  # noqa: SIM115
        self.rows = csv.writer(self.file, lineterminator="\n")

    def write_scalar(self, trainer, tag: str, value: float, step: int | None) -> None:
        """Write a row."""
        self.rows.writerow([step, trainer.epoch + 1, tag, value])

    def close(self, trainer) -> None:
        """Close the file."""
        self.file.close()


def _find_kept_rows(path: Path, trainer) -> Iterator[list[str]]:
    """Yield the rows of an earlier METRICS_FILE that a resume at ``trainer.start_epoch`` does not write again."""
    # A finished run that is started again repeats the test after its last epoch.
    is_finished, last_test = trainer.start_epoch >= trainer.max_epoch, f"{trainer.cfg.TEST.SPLIT}/"
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.reader(line.replace("\0", "") for line in file):  # after a crash, a file may end in nulls
                if len(row) == len(COLUMNS) and row[1].isdecimal():  # neither the heading nor a line that was cut
                    is_last_test = is_finished and int(row[1]) == trainer.start_epoch and row[2].startswith(last_test)
                    if int(row[1]) <= trainer.start_epoch and not is_last_test:
                        yield row


class WandbLogger(MetricsLogger):
    """Logs to Weights & Biases; WANDB_MODE=offline keeps the run in ``wandb/`` in its folder, for ``wandb sync``."""

    package = "wandb"

    def open(self, trainer, log_dir: str) -> None:
        """Start a run, with the config; UserError where Weights & Biases refuses it, as without an account."""
        import wandb

        project, name = name_run(trainer.output_dir)
        try:
            self.run = wandb.init(
                project=project,
                name=name,
                dir=trainer.output_dir,
                config=to_dict(trainer.cfg),
                settings=wandb.Settings(console="off"),  # standard output is in log.txt
            )
        except wandb.errors.Error as error:
            hint = "Without an account or a network, set WANDB_MODE=offline"
            raise UserError(f"TRAIN.LOGGERS wandb, Weights & Biases: {error} {hint}") from error
        for group in ("train", "val", "test"):  # whose steps differ: see MetricsLogger.write_scalar
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")

    def write_scalar(self, trainer, tag: str, value: float, step: int | None) -> None:
        """Log the number beside its step."""
        self.run.log({tag: value, f"{tag.partition('/')[0]}/step": step})

    def close(self, trainer) -> None:
        """Upload what is left; the run counts as failed if it is closed while an exception is being raised."""
        self.run.finish(exit_code=int(sys.exc_info()[0] is not None))


def name_run(folder: str) -> tuple[str, str]:
    """Return project and name of a run: ``digits``, ``CoOp/tiny/seed1`` for the folder output/digits/CoOp/tiny/seed1.

    The environment variable WANDB_PROJECT replaces the project.
    """
    parts = [re.sub(r"[^\w.-]", "-", part) for part in Path(relpath(folder)).parts if part not in ("..", "output")]
    project = os.environ.get("WANDB_PROJECT") or (parts[0] if len(parts) > 1 else DEFAULT_PROJECT)
    return project, "/".join(parts[1:] or parts)


LOGGERS: dict[str, type[MetricsLogger]] = {  # by their names in TRAIN.LOGGERS
    "tensorboard": TensorBoardLogger,
    "csv": CSVLogger,
    "wandb": WandbLogger,
}


def build_loggers(cfg: CfgNode) -> list[MetricsLogger]:
    """Return the loggers that TRAIN.LOGGERS names; UserError for an unknown name, or if its package is missing."""
    names = [*dict.fromkeys(filter(None, cfg.TRAIN.LOGGERS))]
    check_availability(names, LOGGERS, "TRAIN.LOGGERS")
    for package in filter(None, (LOGGERS[name].package for name in names)):
        import_optional(package, package, f"TRAIN.LOGGERS {package}")
    return [LOGGERS[name]() for name in names]
