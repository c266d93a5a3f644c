"""Many runs with one command: every combination in a grid, each as ``train.py`` would do it, into its own folder.

    python tools/sweep.py configs/sweeps/digits.yaml
    python tools/sweep.py configs/sweeps/digits.yaml --seeds 1,2,3 --jobs 4
    python tools/sweep.py configs/sweeps/digits.yaml OPTIM.MAX_EPOCH 50       # KEY VALUE pairs go to every run

A run's grid gives each axis a list of values, which go where ``{axis}`` stands in its folder and its arguments. An axis
that is named as a config key is (OPTIM.LR, SEED: with a dot, or in capitals) is also set for the run by itself. This
makes four runs:

    runs:
      - folder: CoOp/lr{OPTIM.LR}/seed{seed}
        arguments: --trainer CoOp --seed {seed}
        grid:
          OPTIM.LR: [0.002, 0.02]
          seed: [1, 2]

A value is always one argument, whatever spaces it has. A folder is of one run alone.

In arguments, ``{output}`` is the sweep's folder. A run whose --model-dir is the folder of another run of the sweep
(``{output}/CoOp/lr{OPTIM.LR}/seed{seed}``) comes after that one, and is not started if it fails.

Runs that are finished (their result.json is of the same command, and newer than its config files and its model) are
skipped, so a sweep that was stopped goes on. A run that fails is listed at the end, and the exit code is 1.

On many machines (see docs/scale.md), whose nodes see the repository, the data and the output folder on a file system
that they share:

    python tools/sweep.py CONFIG.yaml --ray auto --memory 4      # tasks of Ray, where ray start has made a cluster
    bash scripts/slurm/submit.sh CONFIG.yaml                     # an array of Slurm jobs; each is --cell NUMBER
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, check_at_least, command_line, stopped
from dassl.utils.results import read_record
from tools.clusters.addresses import with_address
from tools.sweeps import arrays, local
from tools.sweeps.grid import Cell, cells_of, read_sweep
from tools.sweeps.order import Ended, in_stages, run_stages, unfinished
from tools.sweeps.progress import GrowingTable

RunAll = Callable[[list[Cell]], Ended]


def report(stages: list[list[Cell]], run_all: RunAll, command: list[str], table: GrowingTable | None) -> list[Cell]:
    """Do the runs, with a line for each; returns those that failed. ``command`` holds the arguments of this program."""
    total = sum(map(len, stages))
    start, failed = time.time(), []
    number, say = 0, table.say if table else partial(print, flush=True)
    try:
        with closing(run_stages(stages, run_all)) as ended:
            for number, (cell, error) in enumerate(ended, start=1):
                if error:
                    failed.append(cell)
                elif table:
                    table.add(cell)
                outcome = f"FAILED\n{error}" if error else outcome_of(cell)
                say(f"[{number}/{total}, {time.time() - start:.0f} s] {cell.folder}: {outcome}")
    except KeyboardInterrupt as stop:
        raise stopped(f"after {number} of {total} runs", "with the others", __file__, command) from stop
    if table:
        table.end()
    return failed


def outcome_of(cell: Cell) -> str:
    accuracy = read_record(cell.folder)["accuracy"]
    return "done" if accuracy is None else f"{accuracy:.2f}%"


@contextmanager
def on_this_machine(cells: list[Cell], jobs: int, threads: int) -> Iterator[tuple[RunAll, str]]:
    """What does the runs, and how many at a time."""
    jobs = max(1, min(jobs or cores() // threads, len(cells)))
    yield partial(local.run_all, jobs=jobs, threads=threads), str(jobs)


@contextmanager
def on_ray(todo: list[Cell], args: argparse.Namespace, threads: int) -> Iterator[tuple[RunAll, str]]:
    from tools.clusters.tasks import Need, connected
    from tools.sweeps.cluster import OnRay

    need = Need(threads, args.gpus, args.memory)
    with connected(args.ray, threads):
        yield OnRay(todo, need, args.jobs or 0, threads), str(args.jobs or "as many as the nodes hold")


def cores() -> int:
    """Those that this process may use, where Slurm says so; else all."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or os.cpu_count() or 1)


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sweep", type=Path, help="a YAML file, such as configs/sweeps/digits.yaml")
    add("--root", default="", help="folder of the data sets, for every run")
    add("--output-dir", default="", help="folder of the sweep, instead of the one in the file")
    add("--seeds", default="", help='instead of the seeds in the file, such as "1 2 3" or 1,2,3')
    add("--jobs", type=int, help="runs at a time (the number of cores / the file's threads; on Ray, what fits)")
    add("--table", action="store_true", help="show the table of accuracies as it grows (on Ray it is shown)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="run on Ray: auto, HOST:PORT, ray://HOST:PORT; or here")
    add("--gpus", type=float, default=0, help="with --ray: of a run; 0.5: two runs share one")
    add("--memory", type=float, default=0, metavar="GB", help="with --ray: of a run, which Ray counts, not measures")
    add("--list", action="store_true", help="print the runs with their numbers, and do nothing")
    add("--cell", type=int, metavar="NUMBER", help="do this run alone; the exit code is its own")
    add("--arrays", type=int, metavar="SIZE", help="print what is to be done as Slurm arrays below that size")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    args = parser.parse_intermixed_args(with_address(argv))
    if args.jobs is not None:
        check_at_least(args.jobs, 1, "--jobs")
    if args.ray is None and (args.gpus or args.memory):
        raise UserError("--gpus and --memory say what a run needs on Ray: give --ray, too")
    return args


@command_line()
def main(argv: list[str] | None = None) -> int:
    command = sys.argv[1:] if argv is None else argv
    args = parsed(command)
    sweep = read_sweep(args.sweep)
    threads = sweep.get("threads") or cores()
    cells = cells_of(sweep, args.output_dir, args.root, args.seeds.replace(",", " ").split(), args.opts)
    stages = in_stages(cells)
    if args.list or args.arrays is not None:
        if args.arrays is not None:
            arrays.check(cells[0])
        print("\n".join(arrays.listed(stages) if args.list else arrays.arrays_of(stages, args.arrays)))
        return 0
    if args.cell is not None:
        return arrays.run_one(stages, args.cell, threads)
    stages = unfinished(stages)
    todo = list(itertools.chain(*stages))
    table = None
    if args.table or args.ray is not None:
        table = GrowingTable(Path(args.output_dir or sweep["output"]), set(cells) - set(todo))
    place = on_this_machine(cells, args.jobs or 0, threads)
    if args.ray is not None and todo:
        place = on_ray(todo, args, threads)
    with place as (run_all, at_once):
        done = f"{len(cells)} runs, {len(cells) - len(todo)} finished already"
        print(f"{done}, {at_once} at a time; transcripts are in log.txt", flush=True)
        failed = report(stages, run_all, command, table)
    if failed:
        print(f"{len(failed)} of {len(cells)} runs failed: {', '.join(str(cell.folder) for cell in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
