"""A finished run done again from its record alone, and the two compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import hexdigits
from typing import Any

import train
from dassl import engine
from dassl.config.merge import flatten
from dassl.engine.record import RECORD_FILE, read_record
from dassl.utils import UserError
from inference.trained_run import suppress_stdout

FOLDER_KEYS = ("OUTPUT_DIR", "RESUME", "FORCE_RESUME")  # settings: where a run writes, whether it was ever stopped
CAUSE_KEYS = ("code", "versions", "machine", "config", "weights", "splits", "classnames")  # of other results
CAUSE_KEYS += ("started_from", "forced", "bad_images")
IGNORED_KEYS = (
    "command",
    "seconds",
    "trainer",
    "dataset",
    "split",
    "seed",
    "few_shot_split",
)  # the time; said elsewhere
NAME_KEYS = ("file", "backbone", "commit", "modified")  # of no account where the checksum beside them is the same


def build_arguments(record: dict, folder: Path, root: str, model_dir: str, overrides: list[str]) -> list[str]:
    """Return the arguments of ``train.py`` that do the run of a record again into ``folder``."""
    flags = train.parse_args([str(word) for word in record["command"]])
    given = {"--root": root, "--model-dir": model_dir or flags.model_dir, "--load-epoch": flags.load_epoch}
    arguments = ["--output-dir", str(folder), *(["--eval-only"] if flags.eval_only else [])]
    arguments += [str(word) for pair in given.items() if pair[1] not in ("", None) for word in pair]
    resumed, own = (Path(record["config"].get(key) or "").resolve() for key in ("RESUME", "OUTPUT_DIR"))
    began_with_another = record["config"].get("RESUME") and resumed != own
    left_out = {*FOLDER_KEYS[: 1 if began_with_another else None], *(["DATASET.ROOT"] if root else [])}
    settings = [(key, value) for key, value in flatten(record["config"]) if key not in left_out]
    words = [(key, repr(value) if isinstance(value, str) else str(value)) for key, value in settings]
    return [*arguments, *(word for pair in words for word in pair), *overrides]


def read_current_inputs(arguments: list[str]) -> dict:
    """Return what the run would be made from; :class:`UserError` where a file that the record names is not there."""
    import torch

    flags = train.parse_args(arguments)
    cfg = train.setup_cfg(flags)
    paths = {"--model-dir": flags.model_dir, "RESUME": cfg.RESUME, "MODEL.INIT_WEIGHTS": cfg.MODEL.INIT_WEIGHTS}
    paths |= {"DATASET.ROOT": cfg.DATASET.ROOT, "MODEL.BACKBONE.WEIGHTS": cfg.MODEL.BACKBONE.WEIGHTS}
    if absent := [f"{key} {path}" for key, path in paths.items() if path and not Path(path).expanduser().exists()]:
        raise UserError(
            f"not there, seen from {Path.cwd()}: {', '.join(absent)}. Relative paths are those of the run's command: "
            "start this in the folder where the run was started, or give --root, --model-dir or KEY VALUE"
        )
    with suppress_stdout(), torch.random.fork_rng(devices=[]):
        trainer = engine.build_trainer(cfg)
        return {**engine.get_provenance(trainer), **engine.get_inputs(trainer, flags.model_dir, flags.load_epoch)}


def flatten_record(value: Any, name: str) -> dict[str, Any]:
    """Return the values in a nest of dicts and lists, by their places, written with dots."""
    if isinstance(value, list):
        value = {**dict(enumerate(value)), "count": len(value)}
    if not isinstance(value, dict):
        return {name: value}
    return {
        place: inner for key, below in value.items() for place, inner in flatten_record(below, f"{name}.{key}").items()
    }


def compare_records(then: dict, now: dict) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return what differs between two records, causes first (place, then, now), and which entries are the same.

    What one of two versions of this software does not record is neither.
    """
    differences, same = [], []
    for name in sorted({*then} & {*now} - {*IGNORED_KEYS}, key=lambda name: (name not in CAUSE_KEYS, name)):
        old, new = flatten_record(then[name], name), flatten_record(now[name], name)
        others = [
            place
            for place in old
            if place in new and old[place] != new[place] and not _is_renamed_only(place, old, new)
        ]
        others = [place for place in others if place.removeprefix("config.") not in FOLDER_KEYS]
        differences += [(place, _short(old[place]), _short(new[place])) for place in others]
        same += [] if others else [name]
    return differences, same


def _is_renamed_only(place: str, old: dict, new: dict) -> bool:
    node, _, last = place.rpartition(".")
    return last in NAME_KEYS and old.get(f"{node}.sha256", "") == new.get(f"{node}.sha256")


def _short(value: Any) -> str:
    checksum = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set(hexdigits)
    return value[:12] if checksum else str(value)


def compare_tensors(then: Path, now: Path) -> Iterator[tuple[str, str]]:
    """Yield the newest checkpoint of each model and its best one, if both runs have it, and how they differ, if so."""
    import torch

    from dassl.utils.checkpoint import BEST_NAME, latest_checkpoint, load_checkpoint

    for folder in (pointer.parent for pointer in sorted(now.glob("*/checkpoint"))):
        for name in dict.fromkeys((latest_checkpoint(folder).name, BEST_NAME)):
            paths = then / folder.name / name, folder / name
            if not all(path.is_file() for path in paths):
                continue
            old, new = (load_checkpoint(path)["state_dict"] for path in paths)
            shapes = [{key: (value.shape, value.dtype) for key, value in state.items()} for state in (old, new)]
            difference = "" if shapes[0] == shapes[1] else "tensors of other names or shapes"
            if not difference and not all(torch.equal(old[key], new[key]) for key in old):
                largest = max((old[k].double() - new[k].double()).abs().max().item() for k in old if old[k].numel())
                difference = f"largest difference {largest:.3g}"
            yield f"{folder.name}/{name}", difference


def rerun(source: Path, folder: Path, root: str, model_dir: str, overrides: list[str], anyway: bool) -> int:
    """Do the run in the folder ``source`` again into ``folder``, on as many threads; compare; return the exit code.

    Raises:
        UserError: the record does not tell enough; or data, class names, weights or checkpoints are others than then,
            and not ``anyway``.
    """
    import torch
    from tabulate import tabulate

    record = read_record(source)
    if missing := [key for key in ("command", "config") if not record.get(key)]:
        raise UserError(f"{source / RECORD_FILE} lacks {', '.join(missing)}, so the run cannot be done again")
    if threads := record.get("machine", {}).get("threads"):  # sums depend on their number
        print(f"Threads: {threads}, as then (by itself, this process would take {torch.get_num_threads()})")
        torch.set_num_threads(threads)
    arguments = build_arguments(record, folder, root, model_dir, overrides)
    changed, _ = compare_records(record, read_current_inputs(arguments))
    changed = [f"{place} {then} -> {now}" for place, then, now in changed if place.partition(".")[0] in CAUSE_KEYS]
    if changed and not anyway:
        raise UserError(f"the run would be another one: {'; '.join(changed)}. --anyway goes on")
    print(f"Doing {source / RECORD_FILE} again; the transcript is {folder / 'log.txt'}", flush=True)
    with suppress_stdout():
        if code := train.main(arguments):
            return code

    (differences, same), tensors = compare_records(record, read_record(folder)), dict(compare_tensors(source, folder))
    differences += [(name, "", difference) for name, difference in tensors.items() if difference]
    same += [name for name, difference in tensors.items() if not difference]
    if differences:
        print(tabulate(differences, ["differs", "then", "now"], disable_numparse=True))
    print(f"The same: {', '.join(same)}")
    causes = [place for place, *_ in differences if place.partition(".")[0] in CAUSE_KEYS]
    if others := [place for place, *_ in differences if place not in causes]:
        print(f"Not the same: {', '.join(others)}. What may explain it: {', '.join(causes) or 'nothing recorded'}")
        return 1
    print(f"The same results{', and the same tensors' if tensors else '; there are no checkpoints to compare'}")
    return 0
