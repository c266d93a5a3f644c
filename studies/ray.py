"""Functions as tasks of Ray, on this machine or on a cluster that somebody has started.

    with connected("auto"):
        for item, result, error in run_tasks(function, items, resources(cpus=2)):
            ...

Tasks run in the driver's working directory with its repository, so the nodes of a cluster must see both, data and
results under the same paths as the driver does: on a file system that they share. Nothing is uploaded.
"""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dassl.engine.lock import FolderLockedError, exclusive_lock
from dassl.utils import UserError, check_at_least, error_reason

from .grid import Trial
from .local import run_trial
from .schedule import TrialOutcomes

REPOSITORY = Path(__file__).resolve().parents[1]
LOCAL, AUTO_ADDRESS, CLIENT_SCHEME = "", "auto", "ray://"
ADDRESS_PATTERN = re.compile(r"auto|ray://[^/\s]+:\d+|[^/\s]+:\d+")
NOT_ADDRESS_PATTERN = re.compile(
    r"-.*|.*\.ya?ml|[A-Z][A-Z0-9_.]*"
)  # may follow --ray instead: a flag, a file, a config key
RAY_TIMEOUT = 10  # seconds for a cluster to answer, and for tasks that are cancelled to end
LOST_NODE_TIMEOUT = 180  # seconds in which a lost node, or the file server for it, releases a folder's lock
MAX_RETRIES = 5  # of a task whose worker or node was lost; one that kills its worker every time must come to an end
MAX_IN_FLIGHT = 1_000  # tasks that Ray knows of at most; it starts what the nodes hold
OBJECT_STORE_BYTES = 100_000_000  # of the object store on this machine, which holds next to nothing
RAY_ENVIRONMENT = {  # of Ray, which reads them when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to its makers
    "RAY_task_oom_retries": str(MAX_RETRIES),  # endless by default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without a GPU must not see one
}
FORWARDED_VARIABLES = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE")  # of the driver's environment, to the nodes

Resources = dict[str, float]  # of a task or a node, as Ray lists them: CPU, GPU, memory in bytes


def build_resources(cpus: float = 1, gpus: float = 0, gigabytes: float = 0) -> Resources:
    """Return what a task occupies while it runs; Ray starts it where that is free.

    Args:
        gpus: a fraction: so many tasks share one.
        gigabytes: of memory; 0: not declared.
    """
    for name, value in {"CPUs": cpus, "GPUs": gpus, "memory": gigabytes}.items():
        check_at_least(value, 0, f"{name} of a task")
    return {"CPU": cpus, "GPU": gpus, "memory": gigabytes * 1e9}


def _format_resources(resources: Resources) -> str:
    units = {"CPU": (1, "CPUs"), "GPU": (1, "GPUs"), "memory": (1e9, "GB")}
    return ", ".join(f"{resources[k] / scale:.4g} {unit}" for k, (scale, unit) in units.items() if resources.get(k))


def join_ray_address(argv: list[str]) -> list[str]:
    """Write ``--ray [ADDRESS]`` as ``--ray=ADDRESS``: argparse would take any word for an address.

    Raises:
        UserError: what follows ``--ray`` can neither be an address nor stand there.
    """
    words: list[str] = []
    for word in argv:
        address = word.removeprefix("--ray=") if word.startswith("--ray=") else None
        if words and words[-1] == "--ray=" and not NOT_ADDRESS_PATTERN.fullmatch(word):
            words.pop()
            address = word
        if address and not ADDRESS_PATTERN.fullmatch(address):
            raise UserError(
                f'--ray takes nothing or the address of a cluster (auto, HOST:PORT, ray://HOST:PORT), not "{address}"'
            )
        words.append(word if address is None and word != "--ray" else f"--ray={address or ''}")
    return words


@contextmanager
def connect(address: str = LOCAL, cpus: float = 0) -> Iterator[None]:
    """Connect to a Ray for the body of a ``with``.

    Args:
        address: ``auto`` (the cluster that this machine belongs to), ``HOST:PORT`` or ``ray://HOST:PORT``; empty: a Ray
            of this machine alone, which ends with the body.
        cpus: that the latter has at least; it has one for each core.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    environment = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    settings: dict[str, Any] = {"runtime_env": {"env_vars": {**environment, "PYTHONPATH": paths}}}
    settings |= {"log_to_driver": False, "logging_level": "ERROR", "address": address or "local"}
    if address == LOCAL:
        settings |= {"num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
        settings |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_listening(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what will change in Ray
            ray.init(**settings)
    except Exception as error:  # Ray raises whatever it meets on the way
        place = f"at {address} (if it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as there)"
        raise UserError(f"cannot use the Ray {place if address else 'here'}: {error_reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray():
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError('--ray needs Ray: pip install "coop-dassl[ray]", or pip install ray') from error
    return ray


def _check_listening(address: str) -> None:
    """Raise :class:`UserError` at once where nobody listens; Ray itself would try for a minute."""
    if address == AUTO_ADDRESS:
        return
    host, _, port = address.removeprefix(CLIENT_SCHEME).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at {address}: {error_reason(error)}. An address is auto, HOST:6379 (where ray start --head "
            "was called) or ray://HOST:10001"
        ) from error


def _run_in_folder(folder: str, function: Callable, *arguments: object) -> Any:
    os.chdir(folder)
    return function(*arguments)


def run_tasks(
    function: Callable, items: Iterable, resources: Resources, at_once: int = 0, arguments: tuple = ()
) -> Iterator[tuple[Any, Any, str | None]]:
    """Call ``function(item, *arguments)`` for each item in a task; yield (item, result, traceback or None).

    A task whose worker or node was lost is repeated, but not for ever. Leaving the loop, as by Ctrl-C, cancels those
    that have not ended.

    Args:
        function: one that the other machines can import.
        at_once: tasks that run at a time at most; 0: as many as the nodes hold.

    Raises:
        UserError: no node has the resources of a task.
    """
    ray = _import_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in resources.items()) for node in nodes):
        have = "; ".join(map(_format_resources, nodes)) or "nothing"
        raise UserError(
            f"a task needs {_format_resources(resources)}, which no node of the cluster has. They have: {have}"
        )
    options = {"num_cpus": resources["CPU"], "num_gpus": resources["GPU"], "memory": int(resources["memory"]) or None}
    task = ray.remote(_run_in_folder).options(max_retries=MAX_RETRIES, retry_exceptions=False, **options)
    waiting, running = iter(items), {}
    try:
        while True:
            while len(running) < (at_once or MAX_IN_FLIGHT) and (item := next(waiting, running)) is not running:
                running[task.remote(os.getcwd(), function, item, *arguments)] = item
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                yield (running.pop(reference), *_get_outcome(reference))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=RAY_TIMEOUT)


@contextmanager
def local_or_ray(address: str | None, resources: Resources) -> Iterator[Callable]:
    """Yield ``run(function, items, *arguments)``, which yields what the function returns for each item.

    It is called in this process (``address`` None) or in tasks of a Ray; one that fails there yields its traceback.
    """
    if address is None:
        yield lambda function, items, *arguments: (function(item, *arguments) for item in items)
        return
    with connect(address, resources["CPU"]):
        tasks = partial(run_tasks, resources=resources)
        yield lambda function, items, *rest: (e or r for _, r, e in tasks(function, items, arguments=rest))


def _get_outcome(reference) -> tuple[Any, str | None]:
    from ray import exceptions

    try:
        return _import_ray().get(reference), None
    except exceptions.RayTaskError as error:
        return None, str(error).strip()
    except exceptions.RayError as error:
        return None, f"its worker was lost {MAX_RETRIES + 1} times (out of memory?): {error_reason(error)}"


def run_trials(trials: list[Trial], resources: Resources, at_once: int, threads: int) -> TrialOutcomes:
    """Run the trials as tasks; yield each as it ends. One that was lost with its node goes on from its checkpoints."""
    for trial, result, error in run_tasks(_run_unless_finished, trials, resources, at_once, (threads,)):
        yield trial, error or result


def _run_unless_finished(trial: Trial, threads: int) -> str | None:
    if trial.finished:  # by the task that was lost
        return None
    # The worker that was lost outlives its node by a moment; if it never ends, the trial says who has the folder.
    with suppress(FolderLockedError), exclusive_lock(trial.folder, LOST_NODE_TIMEOUT):
        pass
    return run_trial(trial, threads)
