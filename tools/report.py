"""Write the report of a study: one HTML file that opens offline with a double click.

    python tools/report.py output/digits                 # output/digits/report.html
    python tools/report.py output/digits --lang zh       # output/digits/report.zh.html, in Chinese

The runs are those that tools/results_table.py reads. Where runs with PROTOCOL validation and none are in one folder,
the latter have a report of their own, report_protocol_none.html.

The file holds plotly.js and makes no request. Its libraries come with requirements.txt: Plotly (a download of 10 MB, 64
MB installed) and Jinja2 (0.1 MB).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.engine.lock import exclusive_lock
from dassl.utils import UserError, atomic_write, check_replaceable, command_line
from studies.report.collect import StudyData
from studies.report.page import LANGUAGES, Page, Texts
from studies.tables import generalisation, study


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write the report of the runs in the folder that the command line names, to that folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a study, such as output/digits")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page")
    parser.add_argument("--config", default="", help="config of the runs to read, if there are several (rn50, vit_b16)")
    parser.add_argument("--root", default="", help="folder of the data sets, if it is not where the runs had it")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        raise UserError(f"no folder {args.folder}")
    with exclusive_lock(args.folder):
        if not args.config and generalisation.read_table(args.folder):
            raise UserError(
                f"{args.folder} holds runs on new classes or other data sets, of which there is no report; "
                f"python tools/results_table.py {args.folder} writes their table"
            )
        for number, results in enumerate(study.read_studies(args.folder, args.config)):
            suffix = f"_protocol_{results.protocol}" * (number > 0) + f".{args.lang}" * (args.lang != LANGUAGES[0])
            path = args.folder / f"report{suffix}.html"
            check_replaceable(path)
            command = ["python", "tools/report.py", *(sys.argv[1:] if argv is None else argv)]
            page = Page(StudyData(args.folder, results), Texts(args.lang), args.root, command).render()
            with atomic_write(path) as file:
                file.write(page)
            print(f"Written: {path} (open it with a double click)")


if __name__ == "__main__":
    sys.exit(main())
