"""Run a trainer: config -> trainer -> log.txt, result.json and checkpoints in the output directory.

    python train.py --root ./data --trainer CoOp --dataset-config-file configs/datasets/digits.yaml \
        --config-file configs/trainers/CoOp/tiny.yaml --output-dir output/try DATASET.NUM_SHOTS 16

In N processes, which share every batch: torchrun --nproc-per-node N train.py and the same arguments.
KEY VALUE pairs at the end override config keys. Exit codes: 0 success, 2 a mistake that the message names, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill, indent
from typing import TYPE_CHECKING

from dassl import __version__, engine
from dassl.config import clean_cfg, merge_file, merge_flag, merge_options
from dassl.config.merge import flatten
from dassl.engine.record import find_staleness, read_record
from dassl.utils import check_availability, command_line
from dassl.utils.cost import CostMeter

if TYPE_CHECKING:  # it loads PyTorch, which a run without a record does not need yet
    from trainers.inputs import CurrentInputs

EXAMPLES = """examples:
  zero-shot CLIP on handwritten digits, with the tiny CLIP that comes with the repository:
    python train.py --root ./data --trainer ZeroshotCLIP --dataset-config-file configs/datasets/digits.yaml \\
        --config-file configs/trainers/CoOp/tiny.yaml --output-dir output/try/ZeroshotCLIP --eval-only
  CoOp with 16 images a class, the same way:
    python train.py --root ./data --seed 1 --trainer CoOp --dataset-config-file configs/datasets/digits.yaml \\
        --config-file configs/trainers/CoOp/tiny.yaml --output-dir output/try/CoOp DATASET.NUM_SHOTS 16
  CoOp on ImageNette with CLIP RN50 (first: python tools/prepare_imagenette.py --root ./data):
    python train.py --root ./data --seed 1 --trainer CoOp --dataset-config-file configs/datasets/imagenet.yaml \\
        --config-file configs/trainers/CoOp/rn50.yaml --output-dir output/try/rn50 DATASET.NUM_SHOTS 16
"""
CODE_PATHS = (__file__, "dassl", "vlm", "datasets", "trainers")  # files and folders whose checksum is in result.json
REGISTERED = re.compile(r"^@\w+_REGISTRY\.register\(\)\nclass (\w+)", re.MULTILINE)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose help ends with EXAMPLES and the names that --trainer and DATASET.NAME take."""

    def format_help(self) -> str:
        """Return the help."""
        names = {"trainers": list_registered("trainers"), "data sets (DATASET.NAME)": list_registered("datasets")}
        lists = [f"{kind}:\n{indent(fill(', '.join(each), 110), '  ')}\n" for kind, each in names.items()]
        return "\n".join([super().format_help(), EXAMPLES, *lists])


def list_registered(package: str) -> list[str]:
    """Return the names that the files of ``package`` register. Reads their text, as importing them takes seconds."""
    files = sorted(Path(__file__).with_name(package).glob("*.py"))
    texts = (file.read_text(encoding="utf-8") for file in files)
    return sorted((name for text in texts for name in REGISTERED.findall(text)), key=str.lower)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parse ``argv`` (None: the command line). The result has each flag by name, the KEY VALUE words in ``opts``."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--version", action="version", version=f"coop-dassl {__version__}")
    add("--root", default="", help="folder of the data sets (DATASET.ROOT, ./data)")
    add("--output-dir", default="", help="folder of this run (OUTPUT_DIR, ./output)")
    add("--resume", default="", help="resume another folder's run; one in the output directory resumes without this")
    add("--force-resume", action="store_true", help="resume although the settings have changed")
    add("--seed", type=int, help="0 or above; default: that of the run in the output directory, else a new one")
    add("--source-domains", nargs="+", help="for domain generalisation (DATASET.SOURCE_DOMAINS)")
    add("--target-domains", nargs="+", help="for domain generalisation (DATASET.TARGET_DOMAINS)")
    add("--transforms", nargs="+", help="augmentations (INPUT.TRANSFORMS)")
    add("--config-file", default="", help="YAML of the method")
    add("--dataset-config-file", default="", help="YAML of the data set")
    add("--trainer", default="", help="method, such as ZeroshotCLIP or CoOp")
    add("--backbone", default="", help="CLIP, such as RN50 or ViT-B/16 (MODEL.BACKBONE.NAME)")
    add("--head", default="", help="MODEL.HEAD.NAME")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--model-dir", default="", help="with --eval-only: the run whose model is evaluated")
    add("--load-epoch", type=int, help="with --model-dir: the epoch to load; default: the best, else the newest")
    add("--allow-mismatch", action="store_true", help="evaluate a model under other settings than it was trained with")
    add("--no-train", action="store_true", help="build the trainer, then stop")
    add("--skip-finished", action="store_true", help="do nothing if it has finished on the same data and weights")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, such as DATASET.NUM_SHOTS 4")
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace):
    """Return the frozen config: defaults, then data set file, method file, flags, KEY VALUE pairs; the later one wins.

    A negative SEED is replaced, and DATASET.TEMPLATE, if nothing sets it, by that of ``choose_template``.
    Raises ``UserError`` for an unknown name or key, or a wrong value.
    """
    import datasets  # registers the data sets in its files
    import trainers  # noqa: F401  registers the methods in its files
    from trainers.backbone import check_runs_on

    cfg = engine.default_cfg()
    cfg.DATASET.TEMPLATE = ""  # if nothing sets it, it depends on the backbone
    for path in filter(None, (args.dataset_config_file, args.config_file)):
        merge_file(cfg, path)
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "FORCE_RESUME": args.force_resume or args.allow_mismatch or None,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    for key, value in flags.items():
        if value not in ("", None):  # 0 is a seed
            merge_flag(cfg, key, value)
    merge_options(cfg, args.opts)
    run_folders = [args.model_dir] if args.eval_only else [cfg.OUTPUT_DIR, cfg.RESUME]
    if cfg.DATASET.TEMPLATE == "":
        cfg.DATASET.TEMPLATE = choose_template(cfg.MODEL.BACKBONE.NAME, *run_folders)
    trainer = engine.TRAINER_REGISTRY.get(cfg.TRAINER.NAME)  # refuses an unknown name before anything is written
    datasets.DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not args.eval_only:
        engine.build_loggers(cfg)  # refuses unknown and missing ones
    check_availability(cfg.PROTOCOL, ("validation", "none"), "PROTOCOL")
    check_runs_on(cfg, trainer)
    cfg.SEED = engine.choose_seed(cfg)  # replaces a negative one
    engine.resolve_decoding(cfg, *run_folders)
    if args.eval_only:
        cfg.OUTPUT_DIR = engine.choose_evaluation_dir(cfg)  # in the folder of a training run, a folder of its own
    clean_cfg(cfg, cfg.TRAINER.NAME, keep=engine.get_trainer_nodes(trainer))  # removes the nodes of other methods
    cfg.freeze()
    return cfg


def choose_template(backbone: str, *folders: str) -> str:
    """Return the default template in the language of ``backbone``'s text encoder.

    It is English if the first run in ``folders`` has the English default: earlier versions had no other, and runs go on
    as they began.
    """
    from vlm.clip.load import find_language
    from vlm.text.templates import DEFAULT_TEMPLATES

    english, template = DEFAULT_TEMPLATES["English"], DEFAULT_TEMPLATES[find_language(backbone)]
    if template == english:
        return english
    saved = dict(flatten(engine.read_saved_config(*folders) or {})).get("DATASET.TEMPLATE")
    return english if saved == english else template


def find_rerun_reason(folder: str | Path, command: Sequence[str], inputs: CurrentInputs | None = None) -> str:
    """Return why a run of ``command`` is not finished in ``folder``; "" if its result is there.

    It is there if it belongs to this command, to the files that the command names, and to the data and weights of now.
    ``inputs`` keeps the fingerprints of these between calls.
    """
    # An evaluation in the folder of a training run has a folder of its own there.
    folders = [Path(folder), *(Path(folder).glob("eval-*") if "--eval-only" in command else ())]
    reasons = [find_staleness(each, command) for each in folders]
    if all(reasons):
        return reasons[0]
    from trainers.inputs import CurrentInputs

    record = read_record(folders[reasons.index("")])
    changes = (inputs or CurrentInputs()).find_changes(record, setup_cfg(parse_args([*command])))
    return f"other {' and '.join(changes)} than in its record" if changes else ""


@command_line("stopped before training; the same command starts again")
def main(argv: list[str] | None = None) -> None:
    """Train or evaluate as ``argv`` (None: the command line) says.

    The decorator makes it return an exit code: 0 for success, 2 for a ``UserError``, 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    command = [word for word in argv if word != "--skip-finished"]  # the flag does not change the run
    if args.skip_finished and not find_rerun_reason(args.output_dir, command):
        print(f"finished already: {args.output_dir}")
        return
    cost = CostMeter()

    from dassl.distributed import process_group  # loads PyTorch, which a skipped run does not need

    with process_group():
        cfg = setup_cfg(args)
        with engine.run_directory(cfg, trains=not args.eval_only, keep_record=args.no_train):
            engine.setup_run(args, cfg)  # logs the settings, seeds the generators
            trainer = engine.build_trainer(cfg)
            if args.no_train:
                return
            with engine.record_run(trainer, args, command, CODE_PATHS, cost):
                if args.eval_only:
                    engine.check_evaluation(trainer, args)
                    trainer.load_model(args.model_dir, epoch=args.load_epoch)
                    trainer.test()
                else:
                    trainer.train()


if __name__ == "__main__":
    sys.exit(main())
