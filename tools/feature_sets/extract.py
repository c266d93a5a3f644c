"""Extracting the shards of a feature set: here, or as tasks of Ray."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dassl.utils import BadImage, InUse, UserError, alone_in, read_image
from tools.clusters.tasks import wait_for
from vlm.feature_set import Description
from vlm.feature_shard import ShardWriter
from vlm.image_encoder import ImageEncoder

from .job import Job, begun, loaded

WORK = ".work"  # below a set: a folder for each shard that is being written
SHOWN = 20  # images, or shards, that a message names
LARGE = 100_000_000  # images, of the estimate


@dataclass
class Done:
    """What extracting a shard came to."""

    images: int = 0  # encoded now
    seconds: float = 0.0
    cores: int = 1
    unit: str = "core"
    left_out: int = 0  # images that cannot be read
    error: str = ""  # what the user has to mend
    by: str = ""  # the process that is extracting it, if that is the error


def extract(job: Job, shard: int | None, ray: str | None, cpus: float, gpus: float) -> None:
    """Extract a shard, or all that are missing; with ``ray``, the address of a cluster, as its tasks.

    Raises:
        UserError: as :func:`begun`, or some shards could not be made; the others are there. One that another process
            is extracting is theirs, unless it was asked for.
    """
    start, results = time.perf_counter(), {}
    with _here() if ray is None else _on_ray(ray, cpus, gpus) as work:
        for _, done in work(begin, job, [0]):  # where the shards are made, as a GPU has a precision of its own
            if done.error:
                raise UserError(done.error)
        told = Description(job.folder)
        if shard is not None and not 1 <= shard <= told.shards:
            raise UserError(f"--shard is {shard}; the set has the shards 1 to {told.shards}")
        numbers = [number for number in told.missing() if shard in (None, number)]
        for number, done in work(extract_shard, job, numbers):
            results[number] = done
            state = f"being extracted by {done.by}" if done.by else "not done"
            state = state if done.error else f"{len(told.rows(number)):,} images"
            print(f"shard {number} of {told.shards}: {state}{f', {done.left_out:,} left out' if done.left_out else ''}")
    missing = {*told.missing()}  # another extraction may have made what this one could not
    _report(list(results.values()), time.perf_counter() - start, told, len(missing))
    failed = {number: done for number, done in results.items() if done.error and number in missing}
    errors = [f"\n  shard {number}: {done.error}" for number, done in failed.items() if shard or not done.by]
    if errors:
        more = f"\n  and {len(errors) - SHOWN:,} more" if len(errors) > SHOWN else ""
        raise UserError(f"{len(errors):,} of {len(results):,} shards were not done:{''.join(errors[:SHOWN])}{more}")


Work = Callable[[Callable, Job, Sequence[int]], Iterator[tuple[int, Done]]]


@contextmanager
def _here() -> Iterator[Work]:
    yield lambda function, job, numbers: ((number, function(job, number)) for number in numbers)


@contextmanager
def _on_ray(address: str, cpus: float, gpus: float) -> Iterator[Work]:
    from tools.clusters.tasks import Need, connected, run

    def work(function: Callable, job: Job, numbers: Sequence[int]) -> Iterator[tuple[int, Done]]:
        tasks = run(function, numbers, Need(cpus, gpus), arguments=lambda number: (job, number, max(1, int(cpus))))
        bar = tqdm(total=len(numbers), disable=None, leave=False, unit="task")
        with bar, closing(tasks):
            for number, done, error in tasks:
                bar.update()
                yield number, done if error is None else Done(error=error)

    with connected(address, cpus):
        yield work


def begin(job: Job, _: int, threads: int = 0) -> Done:
    """Begin the set, if there is none, or compare it with what is asked for."""
    done = Done()
    try:
        begun(job)
    except UserError as error:
        done.error = str(error)
    return done


def extract_shard(job: Job, number: int, threads: int = 0) -> Done:
    """Extract a shard, or go on with it; nothing, if it is there."""
    if threads:
        torch.set_num_threads(threads)
    done = Done(cores=torch.get_num_threads())
    try:
        told = begun(job)
        work = told.folder / WORK / told.path(number).stem
        if threads:
            wait_for(work)  # the task may be a lost one's successor
        with alone_in(work):
            if not told.is_there(number):
                _extract(job, told, number, work / "part.safetensors", done)
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # other shards are being written
            work.parent.rmdir()
    except UserError as error:
        done.error = str(error)
        if isinstance(error, InUse):
            done.by = error.process
    return done


def _extract(job: Job, told: Description, number: int, part: Path, done: Done) -> None:
    data, paths = loaded(job), told.paths(number)
    bad: dict[int, BadImage] = {}
    if data.encoder.device.type == "cuda":
        done.cores, done.unit = 1, "GPU"

    def make(row: int) -> torch.Tensor | None:
        try:
            return data.transform(read_image(data.root / paths[row]))
        except BadImage as error:
            bad[row] = error
            return None

    list(data.encoder.encode(iter([torch.zeros(3, *data.cfg.INPUT.SIZE)])))  # compiles it, before the clock starts
    writer, start = ShardWriter(part, told.form(number)), time.perf_counter()
    try:
        rows = writer.missing()
        bar = tqdm(total=len(paths), initial=len(paths) - len(rows), disable=None, leave=False, unit="image")
        bar.set_description(f"shard {number} of {told.shards}")
        with bar:
            for row, feature in encoded(data.encoder, rows, make, data.threads):
                writer.put(row, feature)
                done.images += 1
                bar.update()
        _account_for(bad, len(paths), number, data.cfg.DATASET.SKIP_BAD_IMAGES)
        for row in bad:
            writer.leave_out(row)
        writer.finish(told.path(number))
        done.left_out = len(bad)
    finally:  # Ctrl-C keeps what there is
        writer.close()
        done.seconds = time.perf_counter() - start


def encoded(
    encoder: ImageEncoder, rows: Sequence[int], make: Callable[[int], torch.Tensor | None], threads: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows and their features (dim,), in order, but for those of which ``make`` gives no image (3, height, width)."""
    taken: deque[int] = deque()  # rows that the encoder has taken and not yet answered

    def images() -> Iterator[torch.Tensor]:
        for row, image in _prepared(rows, make, threads, 4 * encoder.block):
            if image is not None:
                taken.append(row)
                yield image

    for feature in encoder.encode(images()):
        yield taken.popleft(), feature


def _prepared(rows: Sequence[int], make: Callable, threads: int, ahead: int) -> Iterator[tuple[int, object]]:
    """Rows and what is made of them, in order, ``ahead`` of who asks."""
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row in rows:
            waiting.append((row, pool.submit(make, row)))
            if len(waiting) > ahead:
                first, image = waiting.popleft()
                yield first, image.result()
        for first, image in waiting:
            yield first, image.result()


def _account_for(bad: dict[int, BadImage], images: int, number: int, accepted: bool) -> None:
    """Name the images of a shard that cannot be read.

    Raises:
        UserError: there are some, and nobody accepts it; or there is no other.
    """
    if not bad:
        return
    named = "".join(f"\n    {bad[row]}" for row in sorted(bad)[:SHOWN])
    named += f"\n    and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    told = f"{len(bad):,} of {images:,} images could not be read"
    if len(bad) == images:
        raise UserError(f"{told}, which is all of them; is --root the data sets' folder?{named}")
    if not accepted:
        raise UserError(
            f"{told}. Put them back, or accept the loss: DATASET.SKIP_BAD_IMAGES True. The same command goes on:{named}"
        )
    print(f"shard {number}: left out (DATASET.SKIP_BAD_IMAGES), {told}:{named}")


def _report(results: list[Done], seconds: float, told: Description, missing: int) -> None:
    """Say what there is, how fast it came, and what very many images would take."""
    state = f"{missing:,} of {told.shards:,} shards are missing" if missing else "complete"
    print(f"{told.folder}: {told.images:,} images, {len(told.counts):,} classes, {state}")
    if not (images := sum(done.images for done in results)):
        return
    each, unit = images / sum(done.seconds * done.cores for done in results), results[-1].unit
    print(f"{images:,} images in {seconds:,.1f} s, start-up included; {each:,.1f} images/s a {unit} while it encoded")
    hours, gigabytes = LARGE / each / 3600, LARGE * (2 * told.dim + 1) / 1e9
    print(f"{LARGE:,} such images would take {hours:,.0f} hours of a {unit}, and {gigabytes:,.0f} GB")
