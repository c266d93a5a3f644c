"""An estimate of the time that the trials of a sweep take on this machine, from measured steps and encodings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.utils.data import default_collate
from yacs.config import CfgNode

from dassl.config.merge import flatten
from dassl.data.features import StoredFeatures
from dassl.engine import TrainerX
from dassl.utils import UserError

MEASURED_IMAGES = 16  # images that are read, and encoded by each thread: two blocks of the encoder on a CPU
LONG_CALL = 0.5  # seconds: a call that takes longer is not measured a second time


@dataclass(frozen=True)
class Speed:
    """What the parts of a run take, in seconds."""

    start: float  # building the trainer, and the first answer
    step: float  # a training step
    image: float  # reading an image, and encoding it if batches hold features
    answer: float  # the model's output for an image in evaluation


@dataclass
class Estimate:
    """The seconds, training steps and images of the trials that were added; each encoded image counts once."""

    seconds: float = 0
    steps: int = 0
    images: int = 0
    runs: int = 0
    unknown: dict[str, int] = field(default_factory=dict)  # number of trials without an estimate, by method
    speed: Speed | None = None  # of the trainer that was measured last
    _encoded: set[str] = field(default_factory=set)

    def measure(self, trainer, start: float) -> None:
        """Set ``speed`` to that of ``trainer``, which took ``start`` seconds to build; None if it cannot be measured.

        It cannot if a method has an epoch of its own, or takes other batches than images with labels.
        """
        self.speed = None
        if not trainer.get_model_names() or type(trainer).run_epoch is TrainerX.run_epoch:
            try:
                self.speed = measure_speed(trainer, start)
            except UserError:
                raise
            except Exception:  # a method may take batches of any other kind, and its run reports its errors itself
                self.speed = None

    def add(self, trainer, cfg: CfgNode, is_evaluation: bool) -> None:
        """Add a trial of the config ``cfg``, which differs from that of the measured ``trainer`` in seed and shots."""
        self.runs += 1
        if (speed := self.speed) is None:
            self.unknown[cfg.TRAINER.NAME] = self.unknown.get(cfg.TRAINER.NAME, 0) + 1
            return
        dataset, shots = trainer.dm.dataset, cfg.DATASET.NUM_SHOTS
        train = trainer.num_classes * shots if shots >= 1 else len(dataset.train_x)
        batches = max(train // cfg.DATALOADER.TRAIN_X.BATCH_SIZE, 1)
        epochs = 0 if is_evaluation or not trainer.get_model_names() else trainer.count_epochs(cfg, batches)
        steps = epochs * batches
        test, validations = len(dataset.test), epochs if cfg.TEST.FINAL_MODEL == "best_val" else 0
        val = len(dataset.val or ()) if validations else 0
        views = epochs
        if trainer.feature_extractor is not None:
            is_random = getattr(trainer.train_loader_x.dataset, "is_random", True)
            views = min(epochs, (cfg.FEATURES.VIEWS or epochs) if is_random else 1)
        inputs = f"{dict(flatten(cfg.MODEL.BACKBONE))} {dict(cfg.INPUT)} {dict(cfg.FEATURES)} {cfg.DATASET.NAME}"
        inputs += f"{cfg.DATASET.FOLDER} {cfg.DATASET.SUBSAMPLE_CLASSES}"
        images = self._count_new(trainer, f"train {cfg.SEED} {shots} {views} {inputs}", train * views)
        images += self._count_new(trainer, f"test {inputs}", test)
        images += self._count_new(trainer, f"val {cfg.SEED} {shots} {inputs}", val)
        self.steps, self.images = self.steps + steps, self.images + images
        answers = test + val * validations
        self.seconds += speed.start + steps * speed.step + images * speed.image + answers * speed.answer

    def _count_new(self, trainer, key: str, images: int) -> int:
        """Return ``images``, or 0 if the features of the images of ``key`` were counted for an earlier trial."""
        is_stored = isinstance(trainer.feature_extractor, StoredFeatures)
        is_cached = trainer.feature_extractor is not None and trainer.cfg.FEATURES.ENABLED
        count = 0 if is_stored or (is_cached and key in self._encoded) else images
        self._encoded.add(key)
        return count

    def format(self, jobs: int) -> str:
        """Return the estimate as a line, for ``jobs`` trials at a time."""
        unknown = ", ".join(f"{count} of {name}" for name, count in self.unknown.items())
        if sum(self.unknown.values()) == self.runs:
            return f"{self.runs} runs; no estimate of their time ({unknown})"
        without = f"; without {unknown}, whose time cannot be estimated" if unknown else ""
        jobs = min(jobs, self.runs)
        # Several runs at a time are in processes of their own, which import what this one has imported.
        duration = format_duration(self.seconds / jobs + (time.process_time() if jobs > 1 else 0))
        images = f"{self.images:,} images to read or encode (fewer if their features are stored)"
        return f"{self.runs} runs, about {duration}: {self.steps:,} training steps, {images}{without}"


def measure_speed(trainer, start: float) -> Speed:
    """Return the speed of ``trainer``, a TrainerX, measured with a few of its training images; it trains two steps."""
    loader, extractor, cfg = trainer.train_loader_x, trainer.feature_extractor, trainer.cfg
    extractor = None if isinstance(extractor, StoredFeatures) else extractor  # the loader's features cost nothing
    dataset = loader.dataset if extractor is None else loader.dataset.dataset  # of images
    count = min(MEASURED_IMAGES, len(dataset))
    begin = time.perf_counter()
    items = [dataset[index] for index in range(count)]
    reading = (time.perf_counter() - begin) / count / max(loader.num_workers, 1)
    encoding, inputs = 0.0, torch.stack([item["img"] for item in items])
    if extractor is not None:
        images = inputs
        inputs = extractor.encode(images[:1]).expand(count, -1).contiguous()  # the first call compiles the encoder
        images = images[torch.arange(MEASURED_IMAGES * torch.get_num_threads()) % count]  # work for each thread
        begin = time.perf_counter()
        extractor.encode(images)
        encoding = (time.perf_counter() - begin) / len(images)
    size = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(dataset))
    batch = default_collate([{**items[i % count], "img": inputs[i % count]} for i in range(size)])
    step = 0.0
    if trainer.get_model_names():
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1 << 30  # no last batch: the rate stays
        trainer.set_model_mode("train")
        step = _time_call(lambda: trainer.forward_backward(batch))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        begin = time.perf_counter()
        answer = _time_call(lambda: trainer.model_inference(inputs[:1].to(trainer.device)))
    return Speed(start + time.perf_counter() - begin, step, reading + encoding, answer)


def _time_call(function: Callable[[], object]) -> float:
    """Return the seconds of the second call of ``function``, or of the first if that takes longer than LONG_CALL."""
    for _ in range(2):
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if (seconds := time.perf_counter() - begin) > LONG_CALL:
            break
    return seconds


def format_duration(seconds: float) -> str:
    """Return a time, rounded up: to 10 seconds, from two minutes on to minutes, from two hours on to hours."""
    unit, name = (10, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{max(math.ceil(seconds / unit), 1) * (10 if name == 's' else 1):,} {name}"
