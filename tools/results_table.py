"""Write result tables and plots from the records of runs.

    python tools/results_table.py output/digits        # the study: results.md, .csv, .png and parameters.png
    python tools/results_table.py output/base2new      # base_to_new.md, .csv: from base to new classes
    python tools/results_table.py output/evaluation    # transfer.md, .csv: from ImageNet to other data sets

The study has a row for each method and a column for each number of shots that have finished runs, wherever they are
below the folder. A run's record (result.json) says its method, shots, seed and settings. Runs that differ only in the
seed are averaged; others are named, not averaged. Folders inside a run's folder (rerun, eval-…) are not read.
studies/tables/generalisation.py says which folders the other two tables read. ``parameters.png`` plots accuracy against
trainable parameters (studies/tables/pareto.py). The files go to the folder of the runs.

Marks, which notes below the table explain:
    *        features are approximated (FEATURES.VIEWS, FEATURES.PREC), classes sampled (TRAINER.COOP.SAMPLED_CLASSES),
             unreadable images skipped (DATASET.SKIP_BAD_IMAGES), labels changed (DATASET.FEWSHOT_FILE), or settings
             changed by --force-resume
    †        other test images, class names, data set, weights, training data or arithmetic than most cells
    (5 shots)  a class had fewer training images than the number of shots
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.engine.lock import exclusive_lock
from dassl.utils import UserError, atomic_write, check_replaceable, command_line
from dassl.utils.fonts import plot_fonts
from studies.tables import generalisation, pareto, study


def write_table(folder: Path, name: str, markdown: str, frame, *plots: str) -> None:
    """Write the table as ``<name>.md`` and ``<name>.csv`` (from ``frame``, a pandas.DataFrame), and print it.

    ``plots`` are names of plots already written; they are printed, too.
    """
    check_replaceable(folder / f"{name}.md", folder / f"{name}.csv")
    with atomic_write(folder / f"{name}.md") as file:
        file.write(markdown)
    with atomic_write(folder / f"{name}.csv") as file:
        frame.to_csv(file)
    print(markdown)
    print(f"Written: {folder}/{', '.join((f'{name}.md', f'{name}.csv', *plots))}")


def write_study(folder: Path, config: str) -> None:
    """Write the table and the plots of the study in ``folder``; ``config`` is the name of its runs' config ("": all).

    Raise :class:`UserError` if no run is finished.
    """
    results = study.read_study(folder, config)
    check_replaceable(*(folder / name for name in ("results.md", "results.csv", "results.png", "parameters.png")))
    title, plots = f"Few-shot accuracy on {folder.resolve().name}", ["results.png"]
    shots, points = pareto.collect_points(results.table)
    with plot_fonts([title, *results.table]):
        with atomic_write(folder / "results.png", "wb") as file:
            study.plot_study(results.table, title, file)
        if len(points) > 1:
            plots.append("parameters.png")
            with atomic_write(folder / "parameters.png", "wb") as file:
                pareto.plot_pareto(shots, points, title, file)
    write_table(folder, "results", study.to_markdown(results, title), study.to_frame(results.table), *plots)


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write the results table of the runs in the folder that the command line names, and its plots, to that folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="such as output/digits, output/base2new, output/evaluation")
    parser.add_argument("--config", default="", help="config of the runs to read, if there are several (rn50, vit_b16)")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    with exclusive_lock(args.folder):
        table = None if args.config else generalisation.read_table(args.folder)
        if table:
            write_table(args.folder, *table)
        else:
            write_study(args.folder, args.config)


if __name__ == "__main__":
    sys.exit(main())
