"""How a run goes on from checkpoints as if it had never stopped, and does not from those of another run."""

from __future__ import annotations

import math
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from dassl.config.saved import changed_settings
from dassl.data.bad_images import BadImages
from dassl.data.datasets.fingerprint import fingerprints
from dassl.utils import UserError, from_first, gather, is_first, load_checkpoint, save_checkpoint, world_size
from dassl.utils.checkpoint import BEST, in_step, remove_superseded

from .base import TrainerBase
from .build import default_cfg


class ResumableTrainer(TrainerBase):
    """A trainer with a config and data that knows what its checkpoints were made from."""

    best_result = -math.inf  # on validation images, of the epochs so far
    forced: tuple[str, ...] = ()  # what was not the same in earlier parts of the run, where --force-resume went on
    _processes: tuple[int, ...] = ()  # how many there were in earlier parts of the run
    _saved_at = math.inf  # seconds; a method with a before_train of its own keeps no checkpoints by the clock

    @cached_property
    def bad_images(self) -> BadImages:
        return BadImages(self.cfg)

    @cached_property
    def splits(self) -> dict[str, dict]:
        """The number of images and the fingerprint of each split."""
        node = self.cfg.DATASET
        root = os.path.join(os.path.expanduser(node.ROOT), os.path.expanduser(node.FOLDER))
        return fingerprints(self.dm.dataset, root) if hasattr(self, "dm") else {}

    def describe(self) -> dict:
        """Entries to add to the run's record, ``result.json``."""
        return {}

    @cached_property
    def origin(self) -> dict[str, str]:
        """What is learned follows from this: the settings, the images for it, the weights at the start."""
        images = {f"{name} images": entry["sha256"] for name, entry in self.splits.items() if name != "test"}
        weights = (self.describe().get("weights") or {}).get("sha256")
        return {"settings": self.cfg.dump(), **images, **({"weights": weights} if weights else {})}

    def before_train(self) -> None:
        begun = from_first(lambda: in_step(Path(self.output_dir, name) for name in self.get_model_names()))
        directory = self.output_dir if begun else self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        if len(set(begins := gather(self.start_epoch))) > 1:
            raise UserError(
                f"the processes would go on after epochs {begins}: {directory} is not the same folder for all of them, "
                "as one on a file system of all machines would be"
            )
        if self.cfg.RESUME and not self.start_epoch:
            raise UserError(f"there is no checkpoint to resume from in {self.cfg.RESUME}")
        if self.start_epoch > self.max_epoch:
            raise UserError(f"{directory} is at epoch {self.start_epoch}; OPTIM.MAX_EPOCH is {self.max_epoch}")
        test = self.cfg.TEST
        if self.start_epoch and test.FINAL_MODEL == "best_val" and not test.NO_TEST and not self.forced:
            self._require_best(directory)
            self._restore_best_result(directory)
        self.init_writer(str(Path(self.output_dir, "tensorboard")))
        self.time_start = self._saved_at = time.time()

    @property
    def processes(self) -> list[int]:
        """How many processes the run has; before that, how many it had where it went on with another number."""
        earlier = list(self._processes)
        return earlier if earlier[-1:] == [world_size()] else [*earlier, world_size()]

    def run_state(self) -> dict[str, Any]:
        own = {"best_result": self.best_result, "origin": self.origin, **self.bad_images.state()}
        several = {"processes": self.processes} if self.processes != [1] else {}
        return {**super().run_state(), **own, **several, **({"forced": list(self.forced)} if self.forced else {})}

    def resume_run_state(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            UserError: the checkpoint was made from something else, and ``force_resume`` does not pass over it.
        """
        super().resume_run_state(checkpoint)
        changed = _changed(checkpoint.get("origin", {}), self.origin)
        if changed and not self.force_resume:
            raise UserError(
                f"the checkpoints were made with other {'; '.join(changed)}. Choose another --output-dir, or go on "
                "from what is there with --force-resume (FORCE_RESUME True)"
            )
        self.forced = (
            *checkpoint.get("forced", ()),
            *(f"after epoch {checkpoint['epoch']}, other {c}" for c in changed),
        )
        for change in self.forced:
            print(f"--force-resume: {change}")
        # What was best under other settings is nothing to be compared with.
        self.best_result = -math.inf if changed else checkpoint.get("best_result", self.best_result)
        self._processes = tuple(checkpoint.get("processes", [1]))
        self.bad_images.resume(checkpoint)

    def _restore_best_result(self, directory: str) -> None:
        """What a later epoch must beat to become the best, if the checkpoint does not tell. From another run's folder
        the best so far comes along."""
        own = Path(directory).resolve() == Path(self.output_dir).resolve()
        for name in self.get_model_names():
            path = Path(directory, name, BEST)
            if path.is_file() and not (own and math.isfinite(self.best_result)):
                best = load_checkpoint(path)
                self.best_result = best.get("val_result") or self.best_result
                if not own and is_first():
                    save_checkpoint(best, Path(self.output_dir, name), model_name=BEST)

    def _require_best(self, directory: str | None = None) -> None:
        """Raise :class:`UserError` unless the best model so far is in ``directory`` (the output directory)."""
        for name in self.get_model_names():
            if not (path := Path(directory or self.output_dir, name, BEST)).is_file():
                raise UserError(f"TEST.FINAL_MODEL is best_val, but the run kept no {path}: it was trained without")

    def keep_checkpoint(self, model_name: str = "") -> None:
        """Save the models, and remove the checkpoints that need not stay any longer."""
        self.save_model(self.epoch, self.output_dir, model_name=model_name)
        for name in self.get_model_names() if is_first() else ():
            remove_superseded(Path(self.output_dir, name), self.cfg.TRAIN.KEEP_CHECKPOINTS)
        self._saved_at = time.time()


def _changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """What two runs were made from that differs, as far as both tell."""
    changed = [
        f"{name} {then[name][:12]} -> {now[name][:12]}"
        for name in now
        if name != "settings" and name in then and then[name] != now[name]
    ]
    settings = changed_settings(then["settings"], now["settings"], default_cfg()) if "settings" in then else []
    return ([f"settings: {'; '.join(settings)}"] if settings else []) + changed
