"""Several runs in one process, which share the passes of the text encoder (tools/sweep.py --together).

Each run is the program that it is alone, on a thread of its own. One thread works at a time, and hands over at two
points of a training step: where the run needs the features of its prompts, and where it needs their gradient. Once
every run is at such a point, those with the same prompts around their contexts get them from one pass over all their
contexts. What a pass computes for a run depends on that run alone: to the last bit what it computes by itself on a CPU,
to rounding in one batch on CUDA (where nobody has run it so far).
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from vlm.layout import Layout
from vlm.openai import CLIP
from vlm.text_encoder import TextEncoder

# Where all runs go into the same matrix products, since starting these takes longer than doing them. Elsewhere each run
# has products of its own, and with them the bits that it has alone: rounding grows in training.
BATCHED = ("cuda",)


def run_together(works: Iterable[Callable[[], Any]], most: int) -> Iterator[tuple[int, Any]]:
    """Do ``works`` in this process, ``most`` at a time; yields the number of each, and what it returns, as it ends.

    What a work raises is raised here; the others are stopped then, as by a Ctrl-C.
    """
    coming, live = enumerate(works), []
    try:
        while True:
            live += [Run(number, work, most) for number, work in islice(coming, most - len(live))]
            if not live:
                return
            for run in live:
                if not run.waits:
                    run.go_on()
            ended = [run for run in live if run.ended]
            live = [run for run in live if not run.ended]
            for run in ended:
                yield run.number, run.result()
            if not ended:  # else the next ones come first
                serve([run.step for run in live])
    finally:
        for run in live:
            run.stop()


class Run(threading.Thread):
    """A work that goes on when it is told to, with what is its own of the process: output and random numbers."""

    def __init__(self, number: int, work: Callable[[], Any], most: int):
        super().__init__(daemon=True)
        self.number, self.most, self._work = number, most, work
        self.step: Step | None = None  # the one it is at
        self.ended = self._stopped = False
        self._outcome = self._error = None
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._streams, self._random = (sys.stdout, sys.stderr), _random_states()
        self.start()

    @property
    def waits(self) -> bool:
        return self.step is not None and self.step.waits

    def result(self) -> Any:
        if self._error:
            raise self._error
        return self._outcome

    def run(self) -> None:
        try:
            self._await_turn()
            self._outcome = self._work()
        except BaseException as error:  # the thread that waits raises it
            self._error = error
        finally:
            self.ended = True
            self._pause.release()

    def go_on(self) -> None:
        """Let it work until it waits for others, or ends. A Ctrl-C meanwhile reaches it first."""
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._streams
        _restore(self._random)
        self._turn.release()
        try:
            while not self._pause.acquire(timeout=1):  # Ctrl-C may be noticed in between alone
                pass
        except KeyboardInterrupt:
            identity, interrupt = ctypes.c_ulong(self.ident), ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, interrupt)
            self._pause.acquire()
            raise
        finally:
            self._streams, self._random = (sys.stdout, sys.stderr), _random_states()
            sys.stdout, sys.stderr = streams

    def hand_over(self) -> None:
        """Wait, on its own thread, until it is told to go on."""
        self._pause.release()
        self._await_turn()

    def _await_turn(self) -> None:
        self._turn.acquire()
        if self._stopped:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Ctrl-C where it waits."""
        self._stopped = True
        if not self.ended:
            self.go_on()


def _random_states() -> tuple:
    """As :func:`dassl.utils.random_states`, which is for files and takes ten times as long."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore(states: tuple) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


class Step:
    """A training step's way through the text encoder: the table and the features it leads to, and back."""

    def __init__(self, encoder: JointEncoder, table: torch.Tensor, layout: Layout):
        kind = table.device.type
        self.encoder, self.table, self.layout = encoder, table, layout
        self.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self.features: torch.Tensor | None = None  # without a history: its gradient is that of the loss
        self.gradient: torch.Tensor | None = None  # of the table
        self.joint: Pass | None = None
        self.error: Exception | None = None
        self.waits = False

    def wait(self) -> None:
        """Let others work until what is missing is there."""
        run = threading.current_thread()
        run.step, self.waits = self, True
        run.hand_over()
        if self.error:
            raise self.error

    def goes_with(self, other: Step) -> bool:
        """Whether one pass can serve both: the same CLIP in the same precision, and the same prompts but for what the
        tables hold."""
        one, two = self.layout, other.layout
        return (
            self.encoder.transformer is other.encoder.transformer
            and self.autocast == other.autocast
            and self.table.shape == other.table.shape
            and (one.prefix, one.tails) == (two.prefix, two.tails)
            and torch.equal(one.index, two.index)
            and torch.equal(one.place, two.place)
        )


class Pass:
    """One pass of the text encoder for several steps."""

    def __init__(self, steps: list[Step]):
        first, self.steps = steps[0], steps
        self.tables = [step.table.detach().requires_grad_() for step in steps]
        device = self.tables[0].device.type
        enabled, dtype = first.autocast
        with torch.autocast(device, dtype, enabled=enabled):
            self.features = (one_batch if device in BATCHED else one_by_one)(steps, self.tables)
        for step, features in zip(steps, self.features, strict=True):
            step.features, step.joint, step.waits = features.detach().requires_grad_(), self, False

    def backward(self) -> None:
        """Take the gradient back to the tables. A run that has diverged has none."""
        features = [step.features for step in self.steps]
        gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in features]
        gradients = torch.autograd.grad(self.features, self.tables, gradients)
        for step, gradient in zip(self.steps, gradients, strict=True):
            step.gradient, step.waits = gradient, False


def one_by_one(steps: list[Step], tables: list[torch.Tensor]) -> list[torch.Tensor]:
    """The features of each run, by the operations it does alone: the same bits."""
    return [step.encoder.encode_alone(table, step.layout) for step, table in zip(steps, tables, strict=True)]


def one_batch(steps: list[Step], tables: list[torch.Tensor]) -> list[torch.Tensor]:
    """The features of each run, all rows in the same matrix products: equal to rounding."""
    tables = torch.stack(tables)
    nothing = tables.new_empty(0, tables.shape[2])
    return [*steps[0].encoder.encode_each(tables, nothing, steps[0].layout)]


def serve(steps: list[Step]) -> None:
    """Compute what steps wait for: first the gradients, and once there are no more of these, features."""
    passes = list(dict.fromkeys(step.joint for step in steps if step.joint))
    if passes:
        for joint in passes:
            _attempt(joint.backward, joint.steps)
        return
    while steps:
        mates = [step for step in steps if step.goes_with(steps[0])]
        steps = [step for step in steps if step not in mates]
        _attempt(lambda mates=mates: Pass(mates), mates)


def _attempt(compute: Callable[[], Any], steps: list[Step]) -> None:
    """An error, such as of too little memory, is that of the runs, not of this program."""
    try:
        compute()
    except Exception as error:
        for step in steps:
            step.error, step.waits = error, False


class JointEncoder(TextEncoder):
    """The text encoder of a run in :func:`run_together`. What needs no gradient it computes for this run alone."""

    step: Step | None = None

    def forward(self, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        if not isinstance(threading.current_thread(), Run) or not torch.is_grad_enabled():
            return self.encode_alone(table, layout)
        self.step = Step(self, table, layout)
        self.step.wait()
        return self.step.features

    def encode_alone(self, table: torch.Tensor, layout: Layout) -> torch.Tensor:
        return super().forward(table, layout)

    def backward(self) -> None:
        """Take the gradient of the features, which a loss has left there, on to the table."""
        self.step.wait()
        self.step.table.backward(self.step.gradient)


def shared(encoder: TextEncoder, clip: CLIP) -> TextEncoder:
    """The encoder that a run trains through: ``encoder`` itself, but in :func:`run_together` one for all runs, which
    share its memory."""
    run = threading.current_thread()
    if not isinstance(run, Run) or type(encoder) is not TextEncoder:
        return encoder
    if clip.logit_scale.device.type not in BATCHED:
        return JointEncoder(clip, encoder.memory // run.most)
    print("Note: --together: trained in one batch with other runs, so equal to rounding alone to the run by itself")
    return JointEncoder(clip, encoder.memory)
