"""List, verify or remove the feature cache of runs; extract the features of very many images; make files of features.

    python tools/features.py ls                # a table, one row an encoder
    python tools/features.py verify            # reads every file, removes damaged ones (then the exit code is 1)
    python tools/features.py rm 1f0c           # removes the features of the encoder whose folder name begins with 1f0c
    python tools/features.py rm                # removes all features

``--cache-dir`` names the folder if the runs have FEATURES.CACHE_DIR. All three are safe while runs are going on: a run
computes missing features again.

``extract`` writes the features of very many images as a Lance data set (vlm/images/lance_features.py), block by block.
A second call continues an interrupted one. ``--shards 100 --shard 3`` computes one shard; ``--ray`` distributes blocks:

    python tools/features.py extract --dataset configs/datasets/imagenet.yaml --backbone RN50 --output sets/imagenet

``export`` writes a data set's features to a file for DATASET.FEATURES: test, val and train, or with DATASET.NUM_SHOTS
the shots of SEED (1); and text features. ``import`` makes such a file from Tip-Adapter's caches:

    python tools/features.py export --dataset configs/datasets/dtd.yaml --backbone RN50 --output dtd.npz
    python tools/features.py import caches/dtd --classes classnames.txt --backbone RN50 --output dtd.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.config.run_config import DECODING_KEYS
from dassl.utils import UserError, command_line, interrupted_error
from studies.ray import build_resources, join_ray_address


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Return the parsed command line; ``command`` is ls, verify, rm, extract, export or import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("ls", "list the encoders"), ("verify", "read every file"), ("rm", "remove features")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--cache-dir", type=Path, help="FEATURES.CACHE_DIR; by default, the user's cache folder")
    command.add_argument("encoder", nargs="*", help="beginning of its folder name; without it, all encoders")
    add = commands.add_parser("import", help="make a file of features from Tip-Adapter's caches").add_argument
    add("folder", type=Path, help="folder with keys_<N>shots.pt, values_<N>shots.pt, test_f.pt, test_l.pt, …")
    add("--output", type=Path, required=True, metavar="FILE", help="the file, .npz")
    add("--classes", type=Path, metavar="FILE", help="text file with a class name a line")
    add("--text", type=Path, metavar="FILE", help="text features, such as text_weights*.pt")
    add("--backbone", default="", help="name of the CLIP, for records")
    export = commands.add_parser("export", help="write a data set's features to a file for DATASET.FEATURES")
    extraction = commands.add_parser("extract", help="write the features of very many images")
    for add, output in ((export.add_argument, "FILE"), (extraction.add_argument, "FOLDER")):
        add("--dataset", required=True, metavar="YAML", help="config of the data set, in configs/datasets/")
        add("--root", default="./data", help="folder of the data sets (./data)")
        add("--backbone", required=True, help="CLIP, such as RN50 or ViT-B/16 (MODEL.BACKBONE.NAME)")
        add("--output", type=Path, required=True, metavar=output, help="file of features, or folder of the Lance set")
    add("--split", default="all", help="train, val, test, or all: each image once (all)")
    add("--shards", type=int, default=1, metavar="N", help="number of shards, one for each call (1)")
    add("--shard", type=int, default=1, metavar="K", help="the shard of this call, 1 to N (1)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="on Ray: auto, HOST:PORT, ray://…; or on this machine")
    add("--cpus", type=float, default=1, help="with --ray: CPUs of a task (1)")
    add("--gpus", type=float, default=0, help="with --ray: GPUs of a task (0)")
    for add in (export.add_argument, extraction.add_argument):
        add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides, as MODEL.BACKBONE.WEIGHTS FILE")
    return parser.parse_args(join_ray_address(argv))


def extract(args: argparse.Namespace, argv: list[str]) -> None:
    """Write the features that ``args`` ask for; ``argv`` is the command line, for the message after Ctrl-C.

    Raise ``UserError`` if a config override sets DATASET.NUM_SHOTS, FEWSHOT_FILE or INPUT, but for DECODING_KEYS.
    """
    cfg = get_cfg_default()
    merge_file(cfg, args.dataset)
    merge_options(cfg, ["DATASET.ROOT", args.root, "MODEL.BACKBONE.NAME", args.backbone, *args.opts])
    node = cfg.DATASET
    keys = {key for key in args.opts[::2] if key.startswith("INPUT.")}
    if node.NUM_SHOTS >= 1 or node.FEWSHOT_FILE or keys - {*DECODING_KEYS}:
        problem = f"extract takes no NUM_SHOTS, no FEWSHOT_FILE and no INPUT but {' and '.join(DECODING_KEYS)}"
        raise UserError(f"{problem}: it covers all images, as the backbone takes them")
    from studies.extract import ExtractionJob, extract_features

    job = ExtractionJob(cfg, args.split, args.output.expanduser())
    try:
        extract_features(job, args.shard, args.shards, args.ray, build_resources(args.cpus, args.gpus))
    except KeyboardInterrupt as stop:
        raise interrupted_error("in the extraction", "with the remaining images", __file__, argv) from stop


def make_file(args: argparse.Namespace) -> None:
    """Write the file of features that ``args`` of export or import ask for, and print what it holds."""
    from studies.feature_files import export_features, import_cache

    if args.command == "import":
        file = import_cache(args.folder, args.output, args.classes, args.text, args.backbone)
    else:
        flags = ["--dataset-config-file", args.dataset, "--root", args.root, "--backbone", args.backbone, "--seed", "1"]
        file = export_features([*flags, *args.opts], args.output)
    counts = ", ".join(f"{name} {len(labels):,}" for name, (_, labels) in file.splits.items())
    text = "without text features" if file.text_features is None else "with text features"
    print(f"{args.output} written: {len(file.classnames):,} classes, {text}; {counts}")


@command_line()
def main(argv: list[str] | None = None) -> int | None:
    """List (ls), verify or remove (rm) cached features, or extract a feature set; return the exit code (None: 0)."""
    command = sys.argv[1:] if argv is None else argv
    args = parse_args(command)
    if args.command == "extract":
        return extract(args, command)
    if args.command in ("export", "import"):
        return make_file(args)
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
