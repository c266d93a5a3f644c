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
import contextlib
import sys
from functools import partial
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, check_at_least, command_line, interrupted_error
from studies import local, ray, slurm
from studies.grid import build_trials, read_sweep
from studies.progress import ProgressPrinter
from studies.schedule import group_into_stages, run_sweep, select_unfinished


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sweep", type=Path, help="a YAML file, such as configs/sweeps/digits.yaml")
    add("--root", default="", help="folder of the data sets, for every run")
    add("--output-dir", default="", help="folder of the sweep, instead of the one in the file")
    add("--seeds", default="", help='instead of the seeds in the file, such as "1 2 3" or 1,2,3')
    add("--jobs", type=int, help="runs at a time (the number of cores / the file's threads; on Ray, what fits)")
    add("--table", action="store_true", help="print a table of accuracies now and then (on Ray it is printed)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="run on Ray: auto, HOST:PORT, ray://HOST:PORT; or here")
    add("--gpus", type=float, default=0, help="with --ray: of a run; 0.5: two runs share one")
    add("--memory", type=float, default=0, metavar="GB", help="with --ray: of a run, which Ray counts, not measures")
    add("--list", action="store_true", help="print the runs with their numbers, and do nothing")
    add("--cell", type=int, metavar="NUMBER", help="do this run alone; the exit code is its own")
    add("--arrays", type=int, metavar="SIZE", help="print what is to be done as Slurm arrays below that size")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    args = parser.parse_intermixed_args(ray.join_ray_address(argv))
    if args.jobs is not None:
        check_at_least(args.jobs, 1, "--jobs")
    if args.ray is None and (args.gpus or args.memory):
        raise UserError("--gpus and --memory say what a run needs on Ray: give --ray, too")
    return args


@command_line()
def main(argv: list[str] | None = None) -> int:
    command = sys.argv[1:] if argv is None else argv
    args = parse_args(command)
    sweep = read_sweep(args.sweep)
    threads = sweep.get("threads") or local.count_cores()
    trials = build_trials(sweep, args.output_dir, args.root, args.seeds.replace(",", " ").split(), args.opts)
    stages = group_into_stages(trials)
    if args.list:
        print("\n".join(slurm.format_trial_list(stages)))
        return 0
    if args.arrays is not None:
        slurm.check_config(trials[0])
        print("\n".join(slurm.format_arrays(stages, args.arrays)))
        return 0
    if args.cell is not None:
        return slurm.run_trial_number(stages, args.cell, threads)
    stages = select_unfinished(stages)
    todo = len([*chain(*stages)])
    progress = ProgressPrinter(
        Path(args.output_dir or sweep["output"]), trials if args.table or args.ray is not None else ()
    )
    if args.ray is not None and todo:
        place, at_once = ray.connect(args.ray, threads), args.jobs or "as many as the nodes hold"
        needed = ray.build_resources(threads, args.gpus, args.memory)
        executor = partial(ray.run_trials, resources=needed, at_once=args.jobs or 0, threads=threads)
    else:
        place, at_once = contextlib.nullcontext(), max(1, min(args.jobs or local.count_cores() // threads, len(trials)))
        executor = partial(local.run_trials, jobs=at_once, threads=threads)
    with place:
        done = f"{len(trials)} runs, {len(trials) - todo} finished already"
        print(f"{done}, {at_once} at a time; transcripts are in log.txt", flush=True)
        try:
            failed = run_sweep(stages, executor, progress)
        except KeyboardInterrupt as stop:
            raise interrupted_error(
                f"after {progress.completed} of {todo} runs", "with the others", __file__, command
            ) from stop
    if failed:
        print(f"{len(failed)} of {len(trials)} runs failed: {', '.join(str(trial.folder) for trial in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
