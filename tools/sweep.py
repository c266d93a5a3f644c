"""Execute a sweep: one run of train.py for each combination in a grid, each in its own folder.

    python tools/sweep.py configs/sweeps/digits.yaml
    python tools/sweep.py configs/sweeps/digits.yaml --seeds 1,2,3 --jobs 4
    python tools/sweep.py configs/sweeps/digits.yaml OPTIM.MAX_EPOCH 50       # KEY VALUE pairs go to every run

A grid gives each axis a list of values; each value replaces ``{axis}`` in the folder and the arguments. An axis whose
name is a config key (with a dot or in capitals: OPTIM.LR, SEED) also sets that key. This makes four runs:

    runs:
      - folder: CoOp/lr{OPTIM.LR}/seed{seed}
        arguments: --trainer CoOp --seed {seed}
        grid:
          OPTIM.LR: [0.002, 0.02]
          seed: [1, 2]

A value is always one argument, even with spaces. Two runs cannot share a folder.

In arguments, ``{output}`` is the sweep's folder. If the --model-dir of a run is the folder of another run of the sweep
(``{output}/CoOp/lr{OPTIM.LR}/seed{seed}``), it starts after that run, and only if that run succeeds.

Finished runs are skipped, so a second call continues an interrupted sweep. A run is finished if its result.json is of
the same command, data and weights, and newer than its config files and its model. Failed runs are listed at the end,
with exit code 1.

Before the first run, the configs, data and weights of all runs are checked, and their time on this machine is
estimated. While runs are going, the screen shows their progress: on no terminal, a line every 30 seconds.

On several machines (see docs/runs.md) that share the repository, the data and the output folder on a file system:

    python tools/sweep.py CONFIG.yaml --ray auto --memory 4      # each run is a task of a Ray cluster (ray start)
    bash scripts/slurm/submit.sh CONFIG.yaml                     # each run is a task of a Slurm array: --cell NUMBER
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
from studies.preflight import check_and_estimate, check_inputs, plan_trials
from studies.progress import ProgressPrinter
from studies.schedule import find_unfinished, format_reruns, group_into_stages, run_sweep
from studies.tables.runs import write_trials


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the parsed and checked command line of a sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sweep", type=Path, help="YAML file of the sweep, such as configs/sweeps/digits.yaml")
    add("--root", default="", help="folder of the data sets")
    add("--output-dir", default="", help="folder of the sweep (the one in the file)")
    add("--seeds", default="", help='seeds that replace those in the file, such as "1 2 3" or 1,2,3')
    add("--jobs", type=int, help="runs at a time (cores / threads in the file; on Ray, as many as fit)")
    add("--table", action="store_true", help="print a table of accuracies during the sweep (always on Ray)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="on Ray: auto, HOST:PORT, ray://…; or on this machine")
    add("--gpus", type=float, default=0, help="with --ray: GPUs of a run; 0.5: two runs share one")
    add("--memory", type=float, default=0, metavar="GB", help="with --ray: memory of a run, reserved but not enforced")
    add("--list", action="store_true", help="only print the runs with their numbers")
    add("--cell", type=int, metavar="NUMBER", help="execute only this run, and return its exit code")
    add("--arrays", type=int, metavar="SIZE", help="only print the unfinished runs as Slurm arrays, indices below SIZE")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides for every run")
    args = parser.parse_intermixed_args(ray.join_ray_address(argv))
    if args.jobs is not None:
        check_at_least(args.jobs, 1, "--jobs")
    if args.ray is None and (args.gpus or args.memory):
        raise UserError("--gpus and --memory are for Ray: add --ray")
    return args


@command_line()
def main(argv: list[str] | None = None) -> int:
    """Execute the sweep that the command line names, or only list its runs; return the exit code."""
    command = sys.argv[1:] if argv is None else argv
    args = parse_args(command)
    sweep = read_sweep(args.sweep)
    threads = sweep.get("threads") or local.count_cores()
    trials = build_trials(sweep, args.output_dir, args.root, args.seeds.replace(",", " ").split(), args.opts)
    stages = group_into_stages(trials)
    if args.list:
        print("\n".join(slurm.format_trial_list(stages)))
        return 0
    if args.cell is not None:
        return slurm.run_trial_number(stages, args.cell, threads)
    from trainers.inputs import CurrentInputs  # loads PyTorch

    inputs = CurrentInputs()
    reasons = find_unfinished(stages, inputs)
    groups = plan_trials([trial for trial in chain(*stages) if trial.folder in reasons], reasons)
    jobs = max(1, min(args.jobs or local.count_cores() // threads, len(trials)))
    output = Path(args.output_dir or sweep["output"])
    if args.arrays is not None:
        check_inputs(groups, inputs)
        write_trials(output, (trial.folder for trial in trials))
        print("\n".join(slurm.format_arrays(stages, reasons, args.arrays)))
        return 0
    counts = f"{len(trials)} runs, {len(trials) - len(reasons)} finished already"
    if args.ray is not None and reasons:  # other machines may have another processor or a GPU: nothing is built here
        check_inputs(groups, inputs)
        context, estimate, at_a_time = ray.connect(args.ray, threads), "", args.jobs or "as many as the nodes hold"
        resources = ray.build_resources(threads, args.gpus, args.memory)
        executor = partial(ray.run_trials, resources=resources, at_once=args.jobs or 0, threads=threads)
    else:
        estimate = check_and_estimate(groups, reasons, jobs, threads) if reasons else ""
        context, at_a_time = contextlib.nullcontext(), jobs
        executor = partial(local.run_trials, jobs=jobs, threads=threads)
    write_trials(output, (trial.folder for trial in trials))
    progress = ProgressPrinter(output, trials if args.table or args.ray is not None else ())
    with context:
        print(f"{counts}, {at_a_time} at a time; transcripts are in log.txt", flush=True)
        for line in filter(None, (*format_reruns(reasons), estimate)):
            print(line, flush=True)
        try:
            unfinished = [[trial for trial in stage if trial.folder in reasons] for stage in stages]
            failed = run_sweep(unfinished, executor, progress)
        except KeyboardInterrupt as stop:
            position = f"after {progress.completed} of {len(reasons)} runs"
            raise interrupted_error(position, "with the remaining runs", __file__, command) from stop
    if failed:
        print(f"{len(failed)} of {len(trials)} runs failed: {', '.join(str(trial.folder) for trial in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
