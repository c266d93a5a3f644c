"""Repeating a finished run from its record alone, and comparing the two runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from string import hexdigits
from typing import Any

import train
from dassl import engine
from dassl.config.merge import flatten
from dassl.config.run_config import DECODING_KEYS
from dassl.data.decoding import ORIGINAL
from dassl.engine.record import RECORD_FILE, read_record, read_training_record
from dassl.utils import UserError
from inference.trained_run import suppress_stdout

# Config keys that differ in every rerun: where a run writes, and whether it was ever stopped and resumed.
FOLDER_KEYS = ("OUTPUT_DIR", "RESUME", "FORCE_RESUME")
# Decoding of images in records without these keys.
ORIGINAL_DECODING = dict(zip(DECODING_KEYS, astuple(ORIGINAL), strict=True))
# Entries of a record whose change may change the results.
CAUSE_KEYS: tuple[str, ...] = ("code", "versions", "machine", "config", "weights", "splits", "classnames")
CAUSE_KEYS += ("started_from", "forced", "bad_images", "descriptions")
# Entries of a record that are not compared: the cost varies, and the entries "config" and "splits" imply the others.
IGNORED_KEYS: tuple[str, ...] = ("command", "trainer", "dataset", "split", "seed", "few_shot_split")
IGNORED_KEYS += ("seconds", "cpu_seconds", "peak_memory", "earlier_runs", "resumed_epoch")
# Keys in an entry that do not matter where the sha256 in the same entry is the same: the content is.
NAME_KEYS = ("file", "backbone", "commit", "modified")


def build_arguments(record: dict, folder: Path, root: str, model_dir: str, overrides: list[str]) -> list[str]:
    """Return arguments of ``train.py`` that repeat the run of ``record``, a result.json, into the folder ``folder``.

    Args:
        root: folder of the data sets; empty: as in the record.
        model_dir: folder of the run whose model is evaluated; empty: as in the record.
        overrides: KEY VALUE pairs, as a flat list, that change the record's config.
    """
    flags = train.parse_args([str(word) for word in record["command"]])
    options = {"--root": root, "--model-dir": model_dir or flags.model_dir, "--load-epoch": flags.load_epoch}
    arguments = ["--output-dir", str(folder), *(["--eval-only"] if flags.eval_only else [])]
    arguments += ["--allow-mismatch"] if flags.allow_mismatch else []
    arguments += [str(word) for pair in options.items() if pair[1] not in ("", None) for word in pair]
    resume_dir, output_dir = (Path(record["config"].get(key) or "").resolve() for key in ("RESUME", "OUTPUT_DIR"))
    started_elsewhere = record["config"].get("RESUME") and resume_dir != output_dir
    config = {**ORIGINAL_DECODING, **dict(flatten(record["config"]))}
    skipped = {*FOLDER_KEYS[: 1 if started_elsewhere else None], *(["DATASET.ROOT"] if root else [])}
    for key, value in config.items():
        if key not in skipped:
            arguments += [key, repr(value) if isinstance(value, str) else str(value)]
    return [*arguments, *overrides]


def read_current_inputs(arguments: list[str]) -> dict:
    """Return the entries on weights, data and checkpoints that ``train.py`` would record with these ``arguments``.

    Raises:
        UserError: a file or folder that the arguments name does not exist.
    """
    import torch

    flags = train.parse_args(arguments)
    cfg = train.setup_cfg(flags)
    paths = {"--model-dir": flags.model_dir, "RESUME": cfg.RESUME, "MODEL.INIT_WEIGHTS": cfg.MODEL.INIT_WEIGHTS}
    data = "FEATURES" if cfg.DATASET.FEATURES else "ROOT"
    paths |= {f"DATASET.{data}": cfg.DATASET[data], "MODEL.BACKBONE.WEIGHTS": cfg.MODEL.BACKBONE.WEIGHTS}
    if absent := [f"{key} {path}" for key, path in paths.items() if path and not Path(path).expanduser().exists()]:
        raise UserError(
            f"paths that do not exist, seen from {Path.cwd()}: {', '.join(absent)}. Relative paths start in the run's "
            "working directory: start this command there, or give --root, --model-dir or KEY VALUE"
        )
    with suppress_stdout(), torch.random.fork_rng(devices=[]):
        trainer = engine.build_trainer(cfg)
        return {**engine.get_provenance(trainer), **engine.get_inputs(trainer, flags.model_dir, flags.load_epoch)}


def flatten_record(value: Any, name: str) -> dict[str, Any]:
    """Return the plain values in nested dicts and lists by dotted key, such as ``splits.test.images``.

    The keys begin with ``name``. Items of a list have their indices as keys; ``count`` is the length of the list.
    """
    if isinstance(value, list):
        value = {**dict(enumerate(value)), "count": len(value)}
    if not isinstance(value, dict):
        return {name: value}
    nested = (flatten_record(inner, f"{name}.{key}") for key, inner in value.items())
    return {key: inner for values in nested for key, inner in values.items()}


def compare_records(saved: dict, current: dict) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Return the differences (dotted key, saved value, current value), causes first, and the names of equal entries.

    Causes are entries of result.json that may change the results (CAUSE_KEYS). IGNORED_KEYS are skipped, and keys that
    only one of the two records has: another version of this software may have written the other one.
    """
    differences, same = [], []
    for name in sorted({*saved} & {*current} - {*IGNORED_KEYS}, key=lambda name: (name not in CAUSE_KEYS, name)):
        old, new = flatten_record(saved[name], name), flatten_record(current[name], name)
        changed = [key for key in old if key in new and old[key] != new[key] and not _is_renamed_only(key, old, new)]
        changed = [key for key in changed if key.removeprefix("config.") not in FOLDER_KEYS]
        differences += [(key, _format_value(old[key]), _format_value(new[key])) for key in changed]
        same += [] if changed else [name]
    return differences, same


def _is_renamed_only(key: str, old: dict, new: dict) -> bool:
    """Whether ``key`` is a file name, backbone or commit in an entry that has the same sha256 in both flat records."""
    entry, _, name = key.rpartition(".")
    return name in NAME_KEYS and old.get(f"{entry}.sha256", "") == new.get(f"{entry}.sha256")


def _format_value(value: Any) -> str:
    """Return a value as text; of a checksum, its first 12 digits."""
    checksum = isinstance(value, str) and len(value) in (40, 64) and set(value) <= set(hexdigits)
    return value[:12] if checksum else str(value)


def compare_tensors(original: Path, repeated: Path) -> Iterator[tuple[str, str]]:
    """Compare each model's newest checkpoint and best one, if both run folders have it.

    Yield the checkpoint's path below the run folder, and a text on the difference of its tensors: empty if equal.
    """
    import torch

    from dassl.utils.checkpoint import BEST_NAME, latest_checkpoint, load_checkpoint

    for folder in (pointer.parent for pointer in sorted(repeated.glob("*/checkpoint"))):
        latest = latest_checkpoint(folder)
        assert latest is not None, "the file `checkpoint`, which names it, is in the folder"
        for name in dict.fromkeys((latest.name, BEST_NAME)):
            paths = original / folder.name / name, folder / name
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
    """Repeat the run in folder ``source`` into ``folder``, with its number of threads, and print the differences.

    Return 0 for the same results, 1 for other results, or the exit code of a run that failed. ``root``, ``model_dir``
    and ``overrides`` are those of ``build_arguments``. With ``anyway``, the run starts even if its inputs differ.

    Raises:
        UserError: result.json is incomplete; or, without ``anyway``, data, class names, weights or checkpoints differ.
    """
    import torch
    from tabulate import tabulate

    if not (record := read_training_record(source)):
        raise UserError(
            f"{source / RECORD_FILE} is not that of the training run in this folder, which cannot be repeated"
        )
    if missing := [key for key in ("command", "config") if not record.get(key)]:
        raise UserError(f"{source / RECORD_FILE} has no {', '.join(missing)}, so the run cannot be repeated")
    if threads := record.get("machine", {}).get("threads"):  # sums depend on their number
        print(f"Threads: {threads}, as in the record (the default of this process is {torch.get_num_threads()})")
        torch.set_num_threads(threads)
    arguments = build_arguments(record, folder, root, model_dir, overrides)
    differences, _ = compare_records(record, read_current_inputs(arguments))
    changed = [f"{key} {old} -> {new}" for key, old, new in differences if key.partition(".")[0] in CAUSE_KEYS]
    if changed and not anyway:
        raise UserError(f"the run would have other inputs: {'; '.join(changed)}. Restore them, or add --anyway")
    print(f"Doing {source / RECORD_FILE} again; the transcript is {folder / 'log.txt'}", flush=True)
    with suppress_stdout():
        if code := train.main(arguments):
            return code

    (differences, same), tensors = compare_records(record, read_record(folder)), dict(compare_tensors(source, folder))
    differences += [(name, "", difference) for name, difference in tensors.items() if difference]
    same += [name for name, difference in tensors.items() if not difference]
    if differences:
        print(tabulate(differences, ["differs", "record", "rerun"], disable_numparse=True))
    print(f"The same: {', '.join(same)}")
    causes = [key for key, *_ in differences if key.partition(".")[0] in CAUSE_KEYS]
    effects = [key for key, *_ in differences if key not in causes]
    if forced := record.get("forced"):  # a rerun trains from the start with the settings of the end
        causes.append(f"--force-resume in the record's run: {'; '.join(map(str, forced))}")
    if effects:
        print(f"Not the same: {', '.join(effects)}. Possible causes: {', '.join(causes) or 'none recorded'}")
        return 1
    print(f"The same results{', and the same tensors' if tensors else '; there are no checkpoints to compare'}")
    return 0
