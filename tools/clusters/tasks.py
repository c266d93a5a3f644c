"""Functions run as tasks of Ray: on this machine, or on a cluster that somebody has started.

    with connected("auto"):
        for item, result, error in run(function, items, Need(cpus=2)):
            ...

Tasks run in the driver's working directory with its repository, so the nodes of a cluster must see both, data and
results under the same paths as the driver does: on a file system that they share. Nothing is uploaded.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.utils import InUse, UserError, alone_in, check_at_least, reason_of

REPOSITORY = Path(__file__).resolve().parents[2]
HERE, AUTO, CLIENT = "", "auto", "ray://"
PATIENCE = 10  # seconds for a cluster to answer, for tasks that are cancelled to end
OF_THE_LOST = 180  # seconds in which a lost node, or the file server for it, lets go of a folder
POLL = 2  # seconds
RETRIES = 5  # of a task whose worker or node was lost; one that kills its worker every time must come to an end
IN_FLIGHT = 1_000  # tasks that Ray knows of at most; it starts what the nodes hold
STORE_BYTES = 1_000_000_000  # of the object store on this machine, at most
SETTINGS = {  # of Ray, which reads them when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to its makers
    "RAY_task_oom_retries": str(RETRIES),  # endless by default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without a GPU must not see one
}
TOLD = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE")  # what the nodes get of the driver's environment


@dataclass(frozen=True)
class Need:
    """What a task occupies while it runs; Ray starts it where that is free."""

    cpus: float = 1
    gpus: float = 0  # a fraction: so many tasks share one
    gigabytes: float = 0  # of memory; 0: not declared

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_at_least(value, 0, f"{name} of a task")

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPUs", f"{self.gpus:g} GPUs", f"{self.gigabytes:g} GB"]
        return ", ".join(part for part, value in zip(parts, vars(self).values(), strict=True) if value)

    @property
    def options(self) -> dict[str, float]:
        """In Ray's words."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return {**options, "memory": int(self.gigabytes * 1e9)} if self.gigabytes else options

    @property
    def resources(self) -> dict[str, float]:
        """As Ray lists what a node has."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.gigabytes * 1e9}


@contextmanager
def connected(address: str = HERE, cpus: float = 0) -> Iterator[None]:
    """For the body of a ``with``, tasks can be run: on the cluster at ``address`` (``auto``: the one that this machine
    belongs to; ``HOST:PORT``; ``ray://HOST:PORT``), or on a Ray of this machine alone, with a CPU for each core but
    ``cpus`` at least, which ends with the body.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    environment = {name: os.environ[name] for name in TOLD if name in os.environ}
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    settings: dict[str, Any] = {"runtime_env": {"env_vars": {**environment, "PYTHONPATH": paths}}}
    settings |= {"log_to_driver": False, "logging_level": "ERROR"}
    if address == HERE:
        settings |= {"num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
        settings |= {"address": "local", "object_store_memory": _store_bytes()}
    else:
        _require_listener(address)
        settings["address"] = address
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what will change in Ray
            ray.init(**settings)
    except Exception as error:  # Ray raises whatever it meets on the way
        place = f"at {address} (if it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as there)"
        raise UserError(f"cannot use the Ray {place if address else 'here'}: {reason_of(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray():
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise UserError('--ray needs Ray: pip install "coop-dassl[ray]", or pip install ray') from error
    return ray


def _store_bytes() -> int:
    """Modest: a third of what is free in shared memory, where Ray keeps it, or ``STORE_BYTES``."""
    try:
        stat = os.statvfs("/dev/shm")
    except (OSError, AttributeError):  # macOS, Windows
        return STORE_BYTES
    return max(100_000_000, min(STORE_BYTES, stat.f_bavail * stat.f_frsize // 3))


def _require_listener(address: str) -> None:
    """Ray itself would try for a minute."""
    if address == AUTO:
        return
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at {address}: {reason_of(error)}. An address is auto, HOST:6379 (where ray start --head "
            "was called) or ray://HOST:10001"
        ) from error


def start(function: Callable, *arguments: object, need: Need = Need()):
    """Begin a task; the reference to its result, which stays in Ray's object stores, can be an argument of others: they
    begin once it is there. NumPy arrays in it lie in a node's store once, and its tasks see them there, read-only.

    An exception in it is one of every task that depends on it. Where a node is lost, its task is done again.
    """
    return _task(need).remote(os.getcwd(), function, *arguments)


def _task(need: Need):
    return _ray().remote(in_folder).options(max_retries=RETRIES, retry_exceptions=False, **need.options)


def in_folder(folder: str, function: Callable, *arguments: object) -> Any:
    """What a task does: call a function in the driver's folder."""
    os.chdir(folder)
    return function(*arguments)


def run(
    function: Callable,
    items: Iterable,
    need: Need = Need(),
    at_once: int = 0,
    arguments: Callable[[Any], tuple] = lambda item: (item,),
) -> Iterator[tuple[Any, Any, str | None]]:
    """Do ``function(*arguments(item))`` for each item, in tasks that begin in this order; yields (item, result, error)
    as each ends. Where it raised, ``error`` is the traceback and ``result`` None.

    A task whose worker or node was lost is repeated, but not for ever; the others are not. Leaving the loop, as by
    Ctrl-C, cancels those that have not ended.

    Args:
        function: found by its module's name on the other machines, too.
        at_once: tasks that run at a time at most; 0: as many as the nodes hold.
        arguments: may hold references that :func:`start` returned.

    Raises:
        UserError: no node has what a task needs.
    """
    ray = _ray()
    _require_room(need)
    task, waiting, running = _task(need), iter(items), {}
    try:
        while True:
            while len(running) < (at_once or IN_FLIGHT) and (item := next(waiting, running)) is not running:
                running[task.remote(os.getcwd(), function, *arguments(item))] = item
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                yield (running.pop(reference), *_outcome(reference))
    finally:
        _cancel(list(running))


def _require_room(need: Need) -> None:
    nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in need.resources.items()) for node in nodes):
        has = "; ".join(
            str(Need(node.get("CPU", 0), node.get("GPU", 0), round(node.get("memory", 0) / 1e9, 1))) for node in nodes
        )
        raise UserError(f"a task needs {need}, which no node of the cluster has. They have: {has or 'nothing'}")


def _outcome(reference) -> tuple[Any, str | None]:
    from ray import exceptions

    try:
        return _ray().get(reference), None
    except exceptions.RayTaskError as error:
        return None, str(error).strip()
    except exceptions.RayError as error:
        return None, f"its worker was lost {RETRIES + 1} times (out of memory?): {reason_of(error)}"


def _cancel(references: list) -> None:
    """Cancel tasks, and wait a while for their workers to end."""
    ray = _ray()
    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=PATIENCE)


def wait_for(folder: Path) -> None:
    """Wait until nobody is in a folder: a worker outlives its node by a moment. Patience ends after a while; who goes
    there is then told who is."""
    deadline = time.monotonic() + OF_THE_LOST
    while time.monotonic() < deadline:
        try:
            with alone_in(folder):
                return
        except InUse:
            time.sleep(POLL)
