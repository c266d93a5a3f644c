"""Functions as tasks of Ray, on this machine or on a cluster that is running already.

    with connect("auto"):
        for item, result, error in run_tasks(function, items, build_resources(cpus=2)):
            ...

Tasks run in the driver's working directory and import the driver's repository. So all nodes must see repository, data
and results under the driver's paths, on a shared file system. Nothing is uploaded.
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
LOCAL, AUTO_ADDRESS, CLIENT_SCHEME = "", "auto", "ray://"  # addresses: a Ray of this machine; those that Ray defines
ADDRESS_PATTERN = re.compile(r"auto|ray://[^/\s]+:\d+|[^/\s]+:\d+")
NOT_ADDRESS_PATTERN = re.compile(r"-.*|.*\.ya?ml|[A-Z][A-Z0-9_.]*")  # after --ray: a flag, a sweep file, a config key
RAY_TIMEOUT = 10  # seconds for a cluster to answer, and for cancelled tasks to end; a person waits for both
LOST_NODE_TIMEOUT = 180  # seconds in which a lost node, or the file server for it, releases a folder's lock
MAX_RETRIES = 5  # retries after a worker or node was lost; a task that kills its worker each time must come to an end
MAX_IN_FLIGHT = 1_000  # tasks submitted at a time: enough to fill the nodes, without millions in Ray's queue
OBJECT_STORE_BYTES = 100_000_000  # of a Ray on this machine: results are short, and Ray's default is 30% of the memory
RAY_ENVIRONMENT = {  # Ray reads these variables when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_task_oom_retries": str(MAX_RETRIES),  # endless by default
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without a GPU must not see one
}
FORWARDED_VARIABLES = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE")  # so that tasks use the driver's caches

Resources = dict[str, float]  # of a task or a node, with Ray's keys: CPU, GPU, memory (bytes)


def build_resources(cpus: float = 1, gpus: float = 0, gigabytes: float = 0) -> Resources:
    """Return the resources that a task occupies while it runs, with Ray's keys; Ray starts it where they are free.

    Args:
        gpus: number of GPUs; a fraction, such as 0.5, lets two tasks share one.
        gigabytes: memory, in 10^9 bytes; 0: not declared.
    """
    for name, value in {"CPUs": cpus, "GPUs": gpus, "memory": gigabytes}.items():
        check_at_least(value, 0, f"{name} of a task")
    return {"CPU": cpus, "GPU": gpus, "memory": gigabytes * 1e9}


def _format_resources(resources: Resources) -> str:
    """Return resources for a message: ``2 CPUs, 1 GPUs, 4 GB``."""
    units = {"CPU": (1, "CPUs"), "GPU": (1, "GPUs"), "memory": (1e9, "GB")}
    return ", ".join(f"{resources[k] / scale:.4g} {unit}" for k, (scale, unit) in units.items() if resources.get(k))


def join_ray_address(argv: list[str]) -> list[str]:
    """Return ``argv`` with ``--ray ADDRESS`` as ``--ray=ADDRESS``, and ``--ray`` alone as ``--ray=``.

    argparse would take any word after ``--ray`` for the address.

    Raises:
        UserError: the word after ``--ray`` is none of: address, flag, YAML file, config key.
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
        address: ``auto`` (the cluster that this machine belongs to), ``HOST:PORT`` or ``ray://HOST:PORT``; LOCAL (""):
            a new Ray on this machine, which ends with the body.
        cpus: least number of CPUs of a LOCAL Ray, which has at least one for each core; other Rays ignore it.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    ray = _import_ray()
    environment = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {"runtime_env": {"env_vars": {**environment, "PYTHONPATH": paths}}}
    options |= {"log_to_driver": False, "logging_level": "ERROR", "address": address or "local"}
    if address == LOCAL:
        options |= {"num_cpus": max(os.cpu_count() or 1, cpus), "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_listening(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's warnings are about its future versions
            ray.init(**options)
    except Exception as error:  # ray.init documents no types, and raises those of its parts
        place = f"at {address} (if it asks for a token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as there)"
        raise UserError(f"cannot use the Ray {place if address else 'here'}: {error_reason(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray():
    """Return the module ``ray``, imported with RAY_ENVIRONMENT in the environment; ``UserError`` without Ray."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError('--ray needs Ray: pip install "coop-dassl[ray]", or pip install ray') from error
    return ray


def _check_listening(address: str) -> None:
    """Raise ``UserError`` if no server answers at ``address``, except ``auto``; Ray would retry for a minute."""
    if address == AUTO_ADDRESS:
        return
    host, _, port = address.removeprefix(CLIENT_SCHEME).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at {address}: {error_reason(error)}. An address is auto, HOST:6379 (where ray start "
            "--head was called) or ray://HOST:10001"
        ) from error


def _run_in_folder(folder: str, function: Callable, *arguments: object) -> Any:
    """Make ``folder`` the working directory and return ``function(*arguments)``; the body of each Ray task."""
    os.chdir(folder)
    return function(*arguments)


def run_tasks(
    function: Callable, items: Iterable, resources: Resources, at_once: int = 0, arguments: tuple = ()
) -> Iterator[tuple[Any, Any, str | None]]:
    """Call ``function(item, *arguments)`` in a task for each item; yield (item, result, error message or None).

    A Ray must be connected (``connect``). Results come as tasks end. Ray repeats a task whose worker or node was
    lost, MAX_RETRIES times. Leaving the loop, as by Ctrl-C, cancels the running tasks.

    Args:
        function: a function that the other nodes can import.
        resources: what each task occupies, from ``build_resources``.
        at_once: largest number of tasks that run at a time; 0: as many as the nodes hold.

    Raises:
        UserError: no node has the resources of a task.
    """
    ray = _import_ray()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in resources.items()) for node in nodes):
        need, have = _format_resources(resources), "; ".join(map(_format_resources, nodes)) or "nothing"
        raise UserError(f"a task needs {need}, which no node of the cluster has. The nodes have: {have}")
    options = {"num_cpus": resources["CPU"], "num_gpus": resources["GPU"], "memory": int(resources["memory"]) or None}
    task = ray.remote(_run_in_folder).options(max_retries=MAX_RETRIES, retry_exceptions=False, **options)
    waiting = iter(items)
    running: dict[Any, Any] = {}  # item by the reference to its task's result
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
    """Yield ``run(function, items, *arguments)``, a generator of the results of ``function(item, *arguments)``.

    ``address`` None: ``run`` calls the function in this process. Else ``run`` calls the function in tasks of the Ray at
    ``address`` with ``resources`` each, and yields results as tasks end. The result of a task that raises is its
    traceback.
    """
    if address is None:
        yield lambda function, items, *arguments: (function(item, *arguments) for item in items)
        return
    with connect(address, resources["CPU"]):
        tasks = partial(run_tasks, resources=resources)
        yield lambda function, items, *args: (error or r for _, r, error in tasks(function, items, arguments=args))


def _get_outcome(reference: Any) -> tuple[Any, str | None]:
    """Return (result, None) of an ended task, or (None, error message) if it raised or its worker was lost."""
    from ray import exceptions

    try:
        return _import_ray().get(reference), None
    except exceptions.RayTaskError as error:
        return None, str(error).strip()
    except exceptions.RayError as error:
        return None, f"its worker was lost {MAX_RETRIES + 1} times (out of memory?): {error_reason(error)}"


def run_trials(trials: list[Trial], resources: Resources, at_once: int, threads: int) -> TrialOutcomes:
    """Run the trials by ``run_tasks`` with ``threads`` threads each; yield (trial, error or None) as each ends.

    A trial whose node was lost resumes from its checkpoints on another node.
    """
    for trial, result, error in run_tasks(_run_unless_finished, trials, resources, at_once, (threads,)):
        yield trial, error or result


def _run_unless_finished(trial: Trial, threads: int) -> str | None:
    """Run a trial unless a lost task has finished it; return the error message, or None for success."""
    if not trial.find_rerun_reason():
        return None
    # A lost worker outlives its node by a moment. If it never ends, the trial's error names it as the lock's owner.
    with suppress(FolderLockedError), exclusive_lock(trial.folder, LOST_NODE_TIMEOUT):
        pass
    return run_trial(trial, threads)
