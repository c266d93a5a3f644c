"""The image features that runs keep on disk: what is there, whether it is sound, and removing it.

    python tools/features.py ls                # a table, one row an encoder
    python tools/features.py verify            # reads every file; damaged ones are removed (exit code 1)
    python tools/features.py rm 1f0c           # the features of the encoder whose folder's name begins so
    python tools/features.py rm                # all of them

``--cache-dir`` names the folder if a run was given FEATURES.CACHE_DIR. All this is safe while runs go on: they compute
anew what they do not find.

``extract`` writes the features of very many images as a Lance data set (vlm/images/lance_features.py), block by block, and
goes on where it was stopped. ``--shards 100 --shard 3`` makes this call's share; ``--ray`` spreads the blocks:

    python tools/features.py extract --dataset configs/datasets/imagenet.yaml --backbone RN50 --output sets/imagenet
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.utils import UserError, command_line, interrupted_error
from studies.ray import build_resources, join_ray_address


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in (("ls", "what is there"), ("verify", "read every file"), ("rm", "remove features")):
        command = commands.add_parser(name, help=says)
        command.add_argument("--cache-dir", type=Path, help="FEATURES.CACHE_DIR; by default, the user's cache folder")
    command.add_argument("encoder", nargs="*", help="the beginning of its folder's name; none: all")
    add = commands.add_parser("extract", help="the features of very many images").add_argument
    add("--dataset", required=True, metavar="YAML", help="of configs/datasets/")
    add("--root", default="./data", help="folder of the data sets (./data)")
    add("--backbone", required=True, help="CLIP, such as RN50 or ViT-B/16 (MODEL.BACKBONE.NAME)")
    add("--split", default="all", help="train, val or test; all, which is the default: each image once")
    add("--output", type=Path, required=True, metavar="FOLDER", help="the set")
    add("--shards", type=int, default=1, metavar="N", help="of how many calls, each with a --shard of its own (1)")
    add("--shard", type=int, default=1, metavar="K", help="1 to N: this call's share of the blocks (1)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="on Ray: auto, HOST:PORT, ray://HOST:PORT; or here")
    add("--cpus", type=float, default=1, help="with --ray: of a task (1)")
    add("--gpus", type=float, default=0, help="with --ray: of a task (0)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, such as MODEL.BACKBONE.WEIGHTS FILE")
    return parser.parse_args(join_ray_address(argv))


def extract(args: argparse.Namespace, argv: list[str]) -> None:
    cfg = get_cfg_default()
    merge_file(cfg, args.dataset)
    merge_options(cfg, ["DATASET.ROOT", args.root, "MODEL.BACKBONE.NAME", args.backbone, *args.opts])
    if cfg.DATASET.NUM_SHOTS >= 1 or any(key.startswith("INPUT.") for key in args.opts[::2]):
        raise UserError("a feature set is of all images, prepared as the backbone learned them: no NUM_SHOTS, no INPUT")
    from studies.extract import ExtractionJob, extract_features

    job = ExtractionJob(cfg, args.split, args.output.expanduser())
    try:
        extract_features(job, args.shard, args.shards, args.ray, build_resources(args.cpus, args.gpus))
    except KeyboardInterrupt as stop:
        raise interrupted_error("in the extraction", "from the images that are done", __file__, argv) from stop


@command_line()
def main(argv: list[str] | None = None) -> int | None:
    command = sys.argv[1:] if argv is None else argv
    args = parse_args(command)
    if args.command == "extract":
        return extract(args, command)
    from vlm.images import store_admin

    root = (args.cache_dir or store_admin.default_cache_dir()).expanduser()
    if not store_admin.list_encoder_folders(root):
        print(f"no features in {root}")
        return None
    if args.command == "rm":
        return store_admin.remove_encoders(root, args.encoder)
    return (store_admin.print_summary if args.command == "ls" else store_admin.verify_files)(root)


if __name__ == "__main__":
    sys.exit(main())
