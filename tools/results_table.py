"""Tables from the logs of the runs.

    python tools/results_table.py output/digits        # the study: results.md, .csv, .png and parameters.png
    python tools/results_table.py output/base2new      # base_to_new.md, .csv: from base to new classes
    python tools/results_table.py output/evaluation    # transfer.md, .csv: from ImageNet to other data sets

The study is zero-shot CLIP against CoOp with 16 and with 4 context tokens, and whatever else there are runs of: other
numbers of tokens, adapters, a linear probe. Which folders are read is said in studies/tables/study.py; for the other
two tables, in studies/tables/generalisation.py. ``parameters.png`` shows accuracy against trainable parameters
(studies/tables/pareto.py). Files are written where the runs are.

A ``*`` marks the cells with runs that took a shortcut with the image features (FEATURES.VIEWS, FEATURES.PREC), that
trained over samples of the classes (TRAINER.COOP.SAMPLED_CLASSES), or that went without images, as these could not be
read (DATASET.SKIP_BAD_IMAGES).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.engine.lock import exclusive_lock
from dassl.utils import UserError, atomic_write, command_line
from studies.tables import generalisation, pareto, study


def write_table(folder: Path, name: str, markdown: str, frame, *also: str) -> None:
    """Write ``<name>.md`` and ``<name>.csv`` and print the table; ``also`` names files that are written already."""
    with atomic_write(folder / f"{name}.md") as file:
        file.write(markdown)
    with atomic_write(folder / f"{name}.csv") as file:
        frame.to_csv(file)
    print(markdown)
    print(f"Written: {folder}/{', '.join((f'{name}.md', f'{name}.csv', *also))}")


def write_study(folder: Path, config: str) -> None:
    """Write the study's table and its plots."""
    table = study.collect_table(folder, config)
    if not any(cell.accuracies for cells in table.values() for cell in cells.values()):
        raise UserError(f"no finished run in {folder}/ZeroshotCLIP or {folder}/CoOp/<config>_<shots>shots")
    title, plots = f"Few-shot accuracy on {folder.resolve().name}", ["results.png"]
    with atomic_write(folder / "results.png", "wb") as file:
        study.plot(table, title, file)
    shots, points = pareto.collect_points(table)
    if len(points) > 1:
        plots.append("parameters.png")
        with atomic_write(folder / "parameters.png", "wb") as file:
            pareto.plot(shots, points, title, file)
    write_table(folder, "results", study.to_markdown(table, title), study.to_frame(table), *plots)


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="such as output/digits, output/base2new, output/evaluation")
    parser.add_argument("--config", default="", help="of a study with several: the runs to read (rn50, vit_b16)")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    with exclusive_lock(args.folder):
        table = None if args.config else generalisation.read_table(args.folder)
        if table:
            write_table(args.folder, *table)
        else:
            write_study(args.folder, study.choose_config(args.folder, args.config))


if __name__ == "__main__":
    sys.exit(main())
