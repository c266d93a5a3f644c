"""The image features that runs keep on disk: what is there, whether it is sound, and removing it.

    python tools/features.py ls                # a table, one row an encoder
    python tools/features.py verify            # reads every file; damaged ones are removed (exit code 1)
    python tools/features.py rm 1f0c           # the features of the encoder whose folder's name begins so
    python tools/features.py rm                # all of them

``--cache-dir`` names the folder if a run was given FEATURES.CACHE_DIR. All this is safe while runs go on: they compute
anew what they do not find.

And sets of the features of very many images, in shards that are extracted one by one (vlm/feature_set.py):

    python tools/features.py extract --dataset configs/datasets/imagenet.yaml --root ./data --backbone RN50 \\
        --split train --output sets/imagenet --shards 100 --shard 3     # without --shard: all that are missing
    python tools/features.py extract … --ray [ADDRESS]                   # the shards as tasks of Ray
    python tools/features.py ls --set sets/imagenet                      # what it is of, which shards are missing
    python tools/features.py verify --set sets/imagenet                  # reads all; damaged shards are removed

An extraction that was stopped goes on with the same command. Several may run at once, on machines that share a disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, command_line, stopped
from studies.ray import with_address

SHOWN = 12  # characters of names and checksums
# What rm removes: what runs write, and what is left of that if one is killed while it writes.
OURS = re.compile(r"[^.].*\.safetensors|encoder\.json|\.lock|\.(.+\.safetensors|encoder\.json)\.[^.]+(\.tmp)?")


@dataclass(frozen=True)
class Encoder:
    """A folder of features, all of one encoder."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name[:SHOWN]

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def size(self) -> int:
        return sum(_size(path) for path in self.files())

    def features(self) -> int:
        return sum(map(_features_in, self.files()))

    def last_used(self) -> str:
        times = []
        for path in self.files():
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(times))) if times else "-"

    def description(self) -> list[str]:
        """Weights, precision and runtime, as far as the folder tells them."""
        from vlm.images.feature_store import DESCRIPTION

        try:
            told = json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = None
        told = told if isinstance(told, dict) else {}
        weights, *rest = (str(told.get(key, "?")) for key in ("weights", "precision", "runtime"))
        return [weights[:SHOWN], *rest]

    def remove(self) -> tuple[int, int]:
        """Remove what runs have written, and the folder if that was all; returns the files of features and bytes."""
        files = bytes_ = 0
        for path in self.folder.iterdir():
            if path.is_dir() or not OURS.fullmatch(path.name):
                continue
            size = _size(path)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror}") from error
            files, bytes_ = files + (path.suffix == ".safetensors"), bytes_ + size
        try:
            self.folder.rmdir()
        except OSError:
            print(f"Note: {self.folder} stays, as it holds something else")
        return files, bytes_


def encoders_in(root: Path) -> list[Encoder]:
    from vlm.images.feature_store import encoder_folders

    return [Encoder(folder) for folder in encoder_folders(root)]


def show(root: Path, encoders: list[Encoder]) -> None:
    from tabulate import tabulate

    rows = [
        [str(e), *e.description(), len(e.files()), e.features(), _readable(e.size()), e.last_used()] for e in encoders
    ]
    head = ["encoder", "weights", "precision", "runtime", "files", "features", "size", "last used"]
    align = ["left"] * 4 + ["right"] * 3 + ["left"]
    print(tabulate(rows, head, disable_numparse=True, colalign=align))
    files, features = (sum(row[i] for row in rows) for i in (4, 5))
    print(f"total: {files:,} files, {features:,} features, {_readable(sum(e.size() for e in encoders))} in {root}")


def verify(encoders: list[Encoder]) -> int:
    """Read every file, so that damaged ones are removed; returns the exit code."""
    from tqdm import tqdm

    from vlm.images.feature_store import read_shard

    files = [(path, encoder.folder.name) for encoder in encoders for path in encoder.files()]
    bad = [path for path, name in tqdm(files, disable=None, leave=False, unit="file") if read_shard(path, name) is None]
    print(f"{len(files) - len(bad):,} files are sound; {len(bad):,} were damaged and removed")
    if stay := [str(path) for path in bad if path.exists()]:
        raise UserError(f"damaged files that cannot be removed: {', '.join(stay)}")
    return 1 if bad else 0


def remove(encoders: list[Encoder], prefixes: list[str]) -> None:
    """Remove the encoders whose names begin so, or all of them.

    Raises:
        UserError: no encoder's name, or that of several, begins so; nothing has been removed.
    """
    chosen = {named(encoders, prefix): None for prefix in prefixes} or encoders
    removed = [encoder.remove() for encoder in chosen]
    files, freed = (sum(column) for column in zip(*removed, strict=True))
    print(f"removed {files:,} files of {', '.join(map(str, chosen))}; {_readable(freed)} are free")


def named(encoders: list[Encoder], prefix: str) -> Encoder:
    found = [encoder for encoder in encoders if prefix and encoder.folder.name.startswith(prefix.lower())]
    if len(found) != 1:
        what = "several encoders begin" if found else "no encoder begins"
        raise UserError(f'{what} with "{prefix}"; there are {", ".join(e.folder.name for e in found or encoders)}')
    return found[0]


def _features_in(path: Path) -> int:
    """How many features a file holds by its header; none if that cannot be read."""
    from vlm.images.feature_store import DAMAGE, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice("features").get_shape()[0]
    except (*DAMAGE, IndexError):
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed just now
        return 0


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"


def add_extract(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", required=True, metavar="YAML", help="of configs/datasets/, or the name of a data set")
    add("--root", default="", help="folder of the data sets (DATASET.ROOT, ./data)")
    add("--backbone", required=True, help="CLIP, such as RN50 or ViT-B/16 (MODEL.BACKBONE.NAME)")
    add("--weights", default="", metavar="FILE", help="CLIP weights to take instead of the backbone's own")
    add("--split", default="all", help="train, val or test; all, which is the default: each image once")
    add("--output", required=True, metavar="FOLDER", help="the set")
    add("--shards", type=int, default=1, metavar="N", help="of how many calls, each with a --shard of its own (1)")
    add("--shard", type=int, default=1, metavar="K", help="1 to N: this call's share of the blocks (1)")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="as tasks of Ray: auto, HOST:PORT, ray://HOST:PORT; or here",
    )
    add("--cpus", type=float, default=1, help="with --ray: of a task (1)")
    add("--gpus", type=float, default=0, help="with --ray: of a task (0)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, such as FEATURES.PREC bf16")


def extract(args: argparse.Namespace, argv: list[str]) -> None:
    from dassl.config import get_cfg_default, merge_file, merge_flag, merge_options
    from studies.extract import Job, extract
    from studies.ray import Resources

    cfg = get_cfg_default()
    is_file = args.dataset.endswith((".yaml", ".yml"))
    merge_file(cfg, args.dataset) if is_file else merge_flag(cfg, "DATASET.NAME", args.dataset)
    for key, value in {
        "DATASET.ROOT": args.root,
        "BACKBONE.NAME": args.backbone,
        "BACKBONE.WEIGHTS": args.weights,
    }.items():
        merge_flag(cfg, key.replace("BACKBONE", "MODEL.BACKBONE"), value or "./data" * (key == "DATASET.ROOT"))
    merge_options(cfg, args.opts)
    if cfg.DATASET.NUM_SHOTS >= 1 or any(key.startswith("INPUT.") for key in args.opts[::2]):
        raise UserError("a feature set is of all images, prepared as the backbone learned them: no NUM_SHOTS, no INPUT")
    try:
        job = Job(cfg, args.split, Path(args.output).expanduser())
        extract(job, args.shard, args.shards, args.ray, Resources(args.cpus, args.gpus))
    except KeyboardInterrupt as stop:
        raise stopped("in the extraction", "from the images that are done", __file__, argv) from stop


def show_set(folder: Path) -> None:
    """Print what a feature set is of."""
    from dassl.config.merge import leaves
    from vlm.images.feature_set import open_set

    data, description = open_set(folder)
    for key, value in leaves(description["settings"]):
        print(f"{key}: {' '.join(str(value).split())}")
    print(f"{data.count_rows():,} images, {len(description['classnames']):,} classes")


@command_line()
def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in (("ls", "what is there"), ("verify", "read every file"), ("rm", "remove features")):
        command = commands.add_parser(name, help=says)
        command.add_argument("--cache-dir", type=Path, help="FEATURES.CACHE_DIR; by default, the user's cache folder")
        if name == "ls":
            command.add_argument("--set", type=Path, metavar="FOLDER", help="this feature set, in place of the cache")
    command.add_argument("encoder", nargs="*", help="the beginning of its folder's name; none: all")
    add_extract(commands.add_parser("extract", help="the features of very many images, in shards"))
    command = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(with_address(command))
    if args.command == "extract":
        return extract(args, command)
    if getattr(args, "set", None):
        return show_set(args.set.expanduser())
    root = args.cache_dir
    if root is None:
        from vlm.images.features import cache_folder

        root = cache_folder()
    root = root.expanduser()
    encoders = encoders_in(root)
    if not encoders:
        print(f"no features in {root}")
        return None
    if args.command == "ls":
        return show(root, encoders)
    return verify(encoders) if args.command == "verify" else remove(encoders, args.encoder)


if __name__ == "__main__":
    sys.exit(main())
