"""Write result tables and plots from the records of runs.

    python tools/results_table.py output/digits        # the study: results.md, .csv, .png and parameters.png
    python tools/results_table.py output/base2new      # base_to_new.md, .csv: from base to new classes
    python tools/results_table.py output/evaluation    # transfer.md, .csv: from ImageNet to other data sets

The study has a row for each method and a column for each number of shots that have finished runs, wherever they are
below the folder. A run's record (result.json) says its method, shots, seed and settings. Runs that differ only in the
seed are averaged; others are named, not averaged. Folders inside a run's folder (rerun, eval-…) are not read.
studies/tables/generalisation.py says which folders the other two tables read. ``parameters.png`` plots accuracy against
trainable parameters (studies/tables/plots.py). The files go to the folder of the runs. Where runs with PROTOCOL
validation and none are in one folder, the latter have files of their own: results_protocol_none.md and so on.

``--published`` adds the figures of papers where method, backbone, data set and shots are theirs (published.csv).

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
from dassl.utils import UserError, atomic_write, check_replaceable, command_line, escape_formula
from dassl.utils.fonts import plot_fonts
from studies.tables import generalisation, pareto, published, study
from studies.tables.plots import describe_runs, plot_pareto, plot_study

PUBLISHED = Path(__file__).resolve().parents[1] / "docs/published.csv"


def write_table(folder: Path, name: str, markdown: str, frame, *plots: str) -> None:
    """Write the table as ``<name>.md`` and ``<name>.csv`` (from ``frame``, a pandas.DataFrame), and print it.

    ``plots`` are names of plots already written; they are printed, too.
    """
    check_replaceable(folder / f"{name}.md", folder / f"{name}.csv")
    with atomic_write(folder / f"{name}.md") as file:
        file.write(markdown)
    with atomic_write(folder / f"{name}.csv") as file:
        frame.rename(escape_formula).to_csv(file)
    print(markdown)
    print(f"Written: {folder}/{', '.join((f'{name}.md', f'{name}.csv', *plots))}")


def write_study(folder: Path, results: study.Study, suffix: str, figures: published.Figures) -> None:
    """Write the table and the plots of a study to ``folder``, in files whose names end in ``suffix``.

    With published ``figures`` of its methods, they are in a second table, and in published.csv.
    """
    plots, parameters, tables = [f"results{suffix}.png"], f"parameters{suffix}.png", f"results{suffix}"
    files = [f"{tables}.md", f"{tables}.csv", *plots, parameters, *(["published.csv"] if figures else [])]
    check_replaceable(*(folder / name for name in files))
    none = ", nothing chosen (PROTOCOL none)" * (results.protocol == "none")
    title = f"Few-shot accuracy on {folder.resolve().name}{none}"
    with plot_fonts([title, *results.table, describe_runs(results.cells.values())]):
        with atomic_write(folder / plots[0], "wb") as file:
            plot_study(results.table, title, file)
        if len(pareto.collect_points(results.table)[1]) > 1:
            plots.append(parameters)
            with atomic_write(folder / parameters, "wb") as file:
                plot_pareto(results.table, title, file)
    text, frame = study.to_markdown(results, title), study.to_frame(results.table)
    frame["group"] = [study.get_group(cells) for cells in results.table.values()]
    beside = published.compare_figures(results, figures)
    if not beside.empty:
        text += published.to_markdown(beside)
        plots.append("published.csv")
        with atomic_write(folder / "published.csv") as file:
            beside.to_csv(file, index=False)
    write_table(folder, tables, text, frame, *plots)


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write the results table of the runs in the folder that the command line names, and its plots, to that folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="such as output/digits, output/base2new, output/evaluation")
    parser.add_argument("--config", default="", help="config of the runs to read, if there are several (rn50, vit_b16)")
    paper_help = "papers' figures beside ours, from FILE (default: docs/published.csv)"
    parser.add_argument("--published", type=Path, nargs="?", const=PUBLISHED, metavar="FILE", help=paper_help)
    args = parser.parse_args(argv)
    figures = published.read_figures(args.published) if args.published else {}
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    with exclusive_lock(args.folder):
        table = None if args.config else generalisation.read_table(args.folder)
        if table:
            write_table(args.folder, *table)
        else:
            for number, results in enumerate(study.read_studies(args.folder, args.config)):
                write_study(args.folder, results, f"_protocol_{results.protocol}" * (number > 0), figures)


if __name__ == "__main__":
    sys.exit(main())
