"""Do a finished run again, from its record alone, and compare the two.

    python tools/rerun.py output/digits/CoOp/tiny_16shots/seed1/result.json
    python tools/rerun.py RESULT.json --output-dir output/again --root /data    # the data have moved
    python tools/rerun.py RESULT.json --model-dir output/there                  # the run that was evaluated has moved
    python tools/rerun.py RESULT.json FEATURES.ENABLED False                    # KEY VALUE pairs change a setting

Settings, --eval-only, --model-dir and --load-epoch are the record's: the YAML files of its command may have changed, or
be gone. Relative paths are taken from the current folder, so start it where the run was started. It takes as many
threads as the run had, since sums depend on that. A run that was stopped and resumed is done as a whole.

Data, class names, weights or checkpoints that are others than then are refused before anything is trained; --anyway
goes on. Exit codes: 0 the same results, and the same tensors where both runs have checkpoints; 1 others; 2 a mistake
that the message names.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from yacs.config import CfgNode

from dassl.engine.record import RECORD, read_record
from dassl.utils import UserError, atomic_write, command_line, read_json
from inference.runs import quiet
from studies.two_runs import OF_THE_FOLDER, Row, compare, compare_tensors, flat

NEEDED = {"command": list, "config": dict}  # of a record, to do its run again
CONFIG = "rerun.yaml"  # the recorded settings, in the new folder


def read(path: Path) -> dict:
    """A record of a run.

    Raises:
        UserError: there is none, it is damaged, or it does not hold what is needed to do the run again.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it is not a record of a run")
    if missing := [key for key, kind in NEEDED.items() if not isinstance(record.get(key), kind) or not record[key]]:
        raise UserError(f"{path} is too old or damaged: it lacks {', '.join(missing)}, so the run cannot be done again")
    return record


def goes_on_from_another(record: dict) -> bool:
    """Whether a run began with the checkpoints of another one. Its own are no part of what it was made from."""
    resumed, folder = (str(record["config"].get(key) or "") for key in ("RESUME", "OUTPUT_DIR"))
    return resumed != "" and Path(resumed).resolve() != Path(folder).resolve()


def write_config(record: dict, path: Path) -> None:
    """The recorded settings as a YAML file, without what belongs to the folder of the run alone."""
    left_out = OF_THE_FOLDER[:1] if goes_on_from_another(record) else OF_THE_FOLDER
    config = {key: value for key, value in record["config"].items() if key not in left_out}
    with atomic_write(path) as file:
        yaml.safe_dump(_as_given(config), file, allow_unicode=True, sort_keys=False)


def _as_given(value: Any) -> Any:
    """Settings as a YAML file must have them: text that would be read as something else, such as {}, in quotes."""
    if isinstance(value, dict):
        return {key: _as_given(below) for key, below in value.items()}
    return repr(value) if isinstance(value, str) and CfgNode._decode_cfg_value(value) != value else value


def arguments_of(record: dict, source: Path, config: Path, args: argparse.Namespace) -> list[str]:
    """The arguments of ``train.py`` for the run of a record, with its settings in the file ``config``."""
    import train

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            flags = train.parse_args([str(word) for word in record["command"]])
    except SystemExit as stop:
        raise UserError(f"{source} is damaged: its command is none of train.py's") from stop
    given = {"--root": args.root, "--model-dir": args.model_dir or flags.model_dir, "--load-epoch": flags.load_epoch}
    arguments = ["--config-file", str(config), "--output-dir", str(config.parent)]
    arguments += ["--eval-only"] if flags.eval_only else []
    arguments += [str(word) for pair in given.items() if pair[1] not in ("", None) for word in pair]
    return [*arguments, *args.opts]


def inputs_now(arguments: list[str]) -> dict:
    """What the run would be made from, of a trainer that is built and not trained.

    Raises:
        UserError: a file or a folder that the record names is not there.
    """
    import torch

    import train
    from dassl.engine import build_trainer
    from dassl.engine.run_dir import describe, inputs_of

    flags = train.parse_args(arguments)
    cfg = train.setup_cfg(flags)
    backbone = cfg.MODEL.BACKBONE.WEIGHTS
    paths = {"--model-dir": flags.model_dir, "RESUME": cfg.RESUME, "MODEL.INIT_WEIGHTS": cfg.MODEL.INIT_WEIGHTS}
    paths |= {"DATASET.ROOT": cfg.DATASET.ROOT, "MODEL.BACKBONE.WEIGHTS": backbone}
    if absent := [f"{key} {path}" for key, path in paths.items() if path and not Path(path).expanduser().exists()]:
        raise UserError(
            f"not there, seen from {Path.cwd()}: {', '.join(absent)}. Relative paths are those of the run's command: "
            "start this in the folder where the run was started, or give --root, --model-dir or KEY VALUE"
        )
    with quiet(), torch.random.fork_rng(devices=[]):
        trainer = build_trainer(cfg)
        return {**describe(trainer), **inputs_of(trainer, flags.model_dir, flags.load_epoch)}


def changed_inputs(then: dict, now: dict) -> list[Row]:
    """What of a run's data, class names, weights and checkpoints is not what it was."""
    rows = compare({key: value for key, value in then.items() if key in now}, now)
    return [row for row in rows if row.differs and row.is_cause]


def report(then: dict, now: dict, folders: tuple[Path, Path]) -> int:
    """Print the table, differences of what the runs were made with and from first; returns the exit code."""
    from tabulate import tabulate

    rows, tensors = compare(then, now), compare_tensors(*folders)
    causes = sorted((row for row in rows if row.is_cause), key=lambda row: not row.differs)
    results = [*(row for row in rows if not row.is_cause), *tensors]
    head = ["", "then", "now", ""]
    print(tabulate([row.cells() for row in (*causes, *results)], head, disable_numparse=True))
    if other := [row.name for row in results if row.differs]:
        reasons = [row.name for row in causes if row.differs]
        print(f"Not the same: {', '.join(other)}. What may explain it: {', '.join(reasons) or 'nothing recorded'}")
        return 1
    print(f"The same results{', and the same tensors' if tensors else '; there are no checkpoints to compare'}")
    return 0


@contextlib.contextmanager
def threads_of(record: dict) -> Iterator[None]:
    """PyTorch uses as many threads as the run had, for the body of a ``with``; says so where that is a change."""
    import torch

    before = torch.get_num_threads()
    then = flat(record.get("machine"), "machine").get("machine.threads")
    if not isinstance(then, int) or then < 1:
        print(f"The record does not tell the number of threads; it is {before} now")
        then = before
    elif then != before:
        print(f"Threads: {then}, as then (by itself, this process would take {before})")
    torch.set_num_threads(then)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rerun(record: dict, source: Path, folder: Path, args: argparse.Namespace) -> int:
    """Do the run of a record again into ``folder``, compare; returns the exit code."""
    import train

    with tempfile.TemporaryDirectory() as temporary:  # nothing is left of a run that is refused
        config = Path(temporary, CONFIG)
        write_config(record, config)
        try:
            changed = changed_inputs(record, inputs_now(arguments_of(record, source, config, args)))
        except UserError as error:
            raise UserError(str(error).replace(str(config), str(source))) from error
    if changed and not args.anyway:
        raise UserError(f"the run would be another one: {'; '.join(map(str, changed))}. --anyway goes on")
    if record["config"].get("FORCE_RESUME") and not goes_on_from_another(record):
        print("Note: the run went on from checkpoints of other settings (FORCE_RESUME); this one begins anew")
    write_config(record, folder / CONFIG)
    print(f"Doing {source} again; the transcript is {folder / 'log.txt'}", flush=True)
    with quiet():
        code = train.main(arguments_of(record, source, folder / CONFIG, args))
    return code or report(record, read_record(folder), (source.parent, folder))


@command_line()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("record", type=Path, metavar="RESULT.json", help="the record of a finished run, or the run's folder")
    add("--output-dir", type=Path, help="a new folder (<the run's folder>-rerun)")
    add("--root", default="", help="folder of the data sets, if it is another one now")
    add("--model-dir", default="", help="folder of the run that was evaluated, if it is another one now")
    add("--anyway", action="store_true", help="go on with other data, class names, weights or checkpoints")
    add("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_intermixed_args(argv)
    source = args.record / RECORD if args.record.is_dir() else args.record
    folder = args.output_dir or Path(f"{os.path.abspath(source.parent)}-rerun")
    if folder.exists() and not (folder.is_dir() and not os.listdir(folder)):
        raise UserError(f"{folder} is there already: name another --output-dir, or remove it")
    record = read(source)
    with threads_of(record):
        return rerun(record, source, folder, args)


if __name__ == "__main__":
    sys.exit(main())
