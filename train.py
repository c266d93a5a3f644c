"""One run: config -> trainer -> log.txt, result.json, checkpoints in the output directory.

    python train.py --root ./data --trainer CoOp --dataset-config-file configs/datasets/digits.yaml \
        --config-file configs/trainers/CoOp/tiny.yaml --output-dir output/try DATASET.NUM_SHOTS 16

In N processes, each with its part of every batch: torchrun --nproc-per-node N train.py and the same arguments.
Keys are overridden by KEY VALUE pairs at the end. Exit codes: 0 done, 2 a mistake that the message names, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dassl.config import claim_folder, clean_cfg, get_cfg_default, merge_file, merge_flag, merge_options, seed_of_run
from dassl.utils import (
    UserError,
    alone_in,
    command_line,
    explaining,
    from_first,
    going_on,
    log_to,
    on_first,
    one_of_several,
    stopped,
)
from dassl.utils.logger import set_aside
from dassl.utils.results import RECORD, is_finished

CODE = ("dassl", "vlm", "datasets", "trainers", "train.py")  # what a run is made of; its record has their checksum


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Dassl's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--root", default="", help="folder of the data sets (DATASET.ROOT, ./data)")
    add("--output-dir", default="", help="folder of this run (OUTPUT_DIR, ./output)")
    add("--resume", default="", help="continue the run in this folder (the output directory, if it holds one)")
    add("--force-resume", action="store_true", help="continue with other settings than the run began with")
    add("--seed", type=int, help="0 and above fix a run; without one, a seed is drawn and logged")
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
    add("--load-epoch", type=int, help="with --model-dir: the epoch to load; without it the best, else the newest")
    add("--no-train", action="store_true", help="build everything, then stop")
    add("--skip-finished", action="store_true", help="do nothing if the output directory holds the finished run")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, such as DATASET.NUM_SHOTS 4")
    return parser.parse_args(argv)


def setup_cfg(args: argparse.Namespace):
    """Defaults, then the two YAML files, then the flags, then the KEY VALUE pairs; frozen."""
    import datasets  # noqa: F401  registers the data sets
    import trainers  # noqa: F401  registers the methods
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY
    from dassl.engine.build import default_cfg

    cfg = default_cfg()
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path)
    reset_cfg(cfg, args)
    merge_options(cfg, args.opts)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)  # refuse unknown names before anything is written
    DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.SEED < 0:
        cfg.SEED = from_first(lambda: draw_seed(cfg))
    if cfg.SEED >= 2**63:
        raise UserError(f"the seed {cfg.SEED} is too large; PyTorch takes up to {2**63 - 1}")
    clean_cfg(cfg, cfg.TRAINER.NAME, keep=nodes_of(trainer))
    cfg.freeze()
    return cfg


def draw_seed(cfg) -> int:
    """That of the run which the output directory holds, or a new one."""
    try:
        earlier = seed_of_run(cfg.OUTPUT_DIR, cfg.RESUME)
    except OSError as error:  # such as a name that is too long
        raise UserError(f"cannot look into {cfg.OUTPUT_DIR} for an earlier run: {error.strerror}") from error
    return earlier if type(earlier) is int else time.time_ns() % 2**31


def nodes_of(trainer: type) -> set[str]:
    """The nodes below TRAINER that a trainer reads: its own, and those of the trainers it builds on."""
    probe = get_cfg_default()
    for base in trainer.__mro__:
        if hasattr(base, "extend_cfg"):
            base.extend_cfg(probe)
    return set(probe.TRAINER)


def reset_cfg(cfg, args: argparse.Namespace) -> None:
    """Put the flags that were given into the config."""
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "FORCE_RESUME": args.force_resume or None,
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


def print_args(args: argparse.Namespace, cfg) -> None:
    print("***************\n** Arguments **\n***************")
    for key, value in sorted(vars(args).items()):
        print(f"{key}: {value}")
    print(f"************\n** Config **\n************\n{cfg}")


def run(cfg, args: argparse.Namespace, command: list[str]) -> None:
    """Build the trainer; train or evaluate; leave ``result.json``."""
    import torch

    from dassl.engine import build_trainer
    from dassl.engine.record import inputs_of, write_record
    from dassl.utils import collect_env_info, keep_memory, set_random_seed, world_size
    from dassl.utils.env import code_version

    keep_memory()
    start, code = time.time(), code_version(Path(__file__).resolve().parent, CODE)
    print_args(args, cfg)
    print(f"** System info **\n{collect_env_info()}\n")
    if world_size() > 1:
        print(f"Processes: {world_size()}, each with its part of every batch")
    print(f"Setting fixed seed: {cfg.SEED}")
    set_random_seed(cfg.SEED)
    torch.backends.cudnn.deterministic = True  # no other convolutions from one run to the next
    trainer = build_trainer(cfg)
    inputs = inputs_of(trainer, args.model_dir if args.eval_only else "", args.load_epoch)
    with telling_where(trainer, command):
        if args.eval_only:
            evaluate(trainer, args)
        elif not args.no_train:
            if args.model_dir:
                print("Note: --model-dir is for --eval-only; training starts from --resume or MODEL.INIT_WEIGHTS")
            trainer.train()
    if not args.no_train:
        write_record(trainer, time.time() - start, command, code, inputs)


def evaluate(trainer, args: argparse.Namespace) -> None:
    """``--eval-only``."""
    cfg = trainer.cfg
    untrained = not args.model_dir and not cfg.MODEL.INIT_WEIGHTS
    if trainer.get_model_names() and untrained and not trainer.usable_untrained:
        raise UserError(f"--eval-only with {cfg.TRAINER.NAME} needs --model-dir, the folder of a finished run")
    trainer.load_model(args.model_dir, epoch=args.load_epoch)
    trainer.stage = "in the evaluation"
    trainer.test()


@contextmanager
def telling_where(trainer, command: list[str]) -> Iterator[None]:
    """Let Ctrl-C, or the loss of another process, say where the run stopped, and the command that goes on."""

    def end() -> tuple[str, str, str, list[str]]:
        kept = f"after epoch {trainer.kept_epoch}" if trainer.kept_epoch else "from the beginning"
        return trainer.stage, kept, __file__, command

    try:
        with explaining(lambda: f" {going_on(*end())}"):
            yield
    except KeyboardInterrupt as stop:
        raise stopped(*end()) from stop


@command_line("stopped before training; the same command begins anew")
def main(argv: list[str] | None = None) -> None:
    """Run the command line; returns the exit code."""
    with one_of_several():
        command = sys.argv[1:] if argv is None else argv
        args = from_first(lambda: parse_args(command))
        if args.skip_finished:
            command = [word for word in command if word != "--skip-finished"]
            if from_first(lambda: is_finished(args.output_dir, command)):
                print(f"finished already: {args.output_dir}")
                return
        cfg = setup_cfg(args)
        from dassl.engine.build import default_cfg  # loaded by now

        with on_first(alone_in(cfg.OUTPUT_DIR)):
            objections = [] if args.eval_only else from_first(lambda: claim_folder(cfg, default_cfg()))
            if not args.no_train:
                from_first(lambda: set_aside(Path(cfg.OUTPUT_DIR, RECORD)))
            with on_first(log_to(cfg.OUTPUT_DIR)), explaining():
                for objection in objections:
                    print(f"--force-resume: {objection}")
                run(cfg, args, command)


if __name__ == "__main__":
    sys.exit(main())
