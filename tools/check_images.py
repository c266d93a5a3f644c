"""Read every image of a data set, and list the unreadable ones.

    python tools/check_images.py --root ./data --dataset-config-file configs/datasets/imagenette.yaml
    python tools/check_images.py --root ./data --dataset-config-file configs/datasets/digits.yaml DATASET.NUM_SHOTS 16

Exit codes: 0 all images are readable, 1 some are not, 2 a user error that the message explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl import data
from dassl.config import get_cfg_default, merge_file, merge_options
from dassl.data.decoding import get_decoding
from dassl.utils import command_line


@command_line()
def main(argv: list[str] | None = None) -> int:
    """Read every image of the data set that the command line names, print the unreadable ones, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="", help="folder of the data sets (DATASET.ROOT of the config)")
    parser.add_argument("--dataset-config-file", required=True, help="YAML of the data set")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, such as DATASET.NUM_SHOTS 16")
    args = parser.parse_intermixed_args(argv)

    import datasets  # noqa: F401  registers the data sets

    cfg = get_cfg_default()
    merge_file(cfg, args.dataset_config_file)
    merge_options(cfg, [*(("DATASET.ROOT", args.root) if args.root else ()), *args.opts])
    dataset = data.build_dataset(cfg)
    paths = dict.fromkeys(item.impath for split in data.SPLITS for item in getattr(dataset, split) or ())
    unreadable = data.find_unreadable(paths, get_decoding(cfg))
    for path, reason in unreadable.items():
        print(f"{path}: {reason}")
    print(f"{len(unreadable):,} of {len(paths):,} images cannot be read")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
