"""The page of the demo in Gradio, which must be installed: three tabs over the compared models."""

from __future__ import annotations

import csv
import html
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path

import gradio as gr

from dassl.utils import UserError
from vlm.text.templates import check_template

from .classify import COMMAS, check_classnames
from .contact_sheet import MAX_IMAGES, write_contact_sheet
from .demo_models import ComparedModel
from .interpret import find_context_words

TOP_K = 5  # classes shown by bars, on the sheet and in the CSV file: the default of predict.py
NUM_WORDS = 5  # nearest words of a token: the default of tools/interpret_prompt.py
# Handlers run one at a time: models share one CLIP, and PyTorch uses all cores for each.
ONE_AT_A_TIME = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}


# Small images fill their frames; paths of runs are broken into lines; the examples take the height of their rows.
CSS = """
#image img { width: 100%; height: 100%; object-fit: contain }
.prose code { white-space: normal; overflow-wrap: anywhere }
#examples, #examples .grid-wrap { min-height: 0; height: auto; max-height: none }
"""


class DemoPage:
    """The page over ``models``; ``texts`` are those of its language, results are written below ``folder``.

    ``classnames`` and ``templates`` are those to begin with, ``examples`` are (path, class) of images to choose from.
    """

    def __init__(
        self,
        models: Sequence[ComparedModel],
        texts: dict[str, str],
        folder: Path,
        classnames: Sequence[str],
        templates: Sequence[str],
        examples: Sequence[tuple[str, str]],
    ):
        self.models, self.texts, self.folder, self.examples = models, texts, folder, examples
        self.classnames, self.templates = classnames, templates

    def build(self, delete_cache: tuple[int, int]) -> gr.Blocks:
        """Return the page, to be launched; ``delete_cache``: seconds between deletions, age of a file to delete."""
        texts = self.texts
        with gr.Blocks(title=texts["title"], analytics_enabled=False, delete_cache=delete_cache) as page:
            gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
            with gr.Row():
                value, info = "\n".join(self.classnames), texts["classes_info"]
                classes = gr.Textbox(
                    value, label=texts["classes"], info=info, placeholder="cup\nred envelope", lines=3, min_width=320
                )
                value, info = "\n".join(self.templates), texts["template_info"]
                template = gr.Textbox(value, label=texts["template"], info=info, lines=1, min_width=320)
            with gr.Tab(texts["image_tab"]):
                self._add_image_tab(classes, template)
            with gr.Tab(texts["words_tab"]) as tab:
                self._add_words_tab(tab)
            with gr.Tab(texts["folder_tab"]):
                self._add_folder_tab(classes, template)
        return page

    def _add_image_tab(self, classes: gr.Textbox, template: gr.Textbox) -> None:
        """Add the tab with one image: bars for each model, and a table of all classes."""
        texts = self.texts
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(
                    label=texts["image"], type="filepath", placeholder=texts["drop_image"], height=280, elem_id="image"
                )
                # The file goes to read_image as it is; Gradio would open it with Pillow.
                image.preprocess = lambda payload: payload and payload.path  # type: ignore[method-assign]
                button = gr.Button(texts["classify"], variant="primary")
                if self.examples:
                    gr.Markdown(texts["examples"])
                    options = {"columns": 3, "object_fit": "contain", "allow_preview": False, "elem_id": "examples"}
                    gallery = gr.Gallery(self.examples, show_label=False, interactive=False, buttons=[], **options)
                    gallery.select(self._choose_example, None, image, api_visibility="private")
            with gr.Column(scale=2, min_width=320):
                labels, facts = [], []
                with gr.Row():
                    for model in self.models:
                        with gr.Column(min_width=220):
                            labels.append(gr.Label(label=model.title, num_top_classes=TOP_K))
                            facts.append(gr.Markdown(model.facts))
                headers = [texts["class"], *(model.title for model in self.models)]
                table = gr.Dataframe(headers=headers, label=texts["table"], interactive=False, wrap=True, buttons=[])
        inputs, outputs = [image, classes, template], [*labels, *facts, table]
        compare, options = self._show_errors(self.compare), {"show_progress_on": [*labels, table], **ONE_AT_A_TIME}
        gr.on([button.click, image.change], compare, inputs, outputs, **options)

    def _add_words_tab(self, tab: gr.Tab) -> None:
        """Add the words nearest to the context of a run to ``tab``; they are computed when it opens."""
        texts, runs = self.texts, [model for model in self.models if model.source]
        gr.Markdown(texts["words_intro"] if runs else texts["no_runs"])
        if not runs:
            return
        titles = [model.title for model in runs]
        chosen = gr.Dropdown(titles, value=titles[0], type="index", label=texts["learned"], filterable=False)
        note, headers = gr.Markdown(), [texts["class"], texts["token"], texts["words"]]
        table = gr.Dataframe(headers=headers, interactive=False, wrap=True, visible=False, buttons=[])
        show = partial(self.show_words, runs)
        gr.on([tab.select, chosen.change], show, chosen, [note, table], **ONE_AT_A_TIME)

    def _add_folder_tab(self, classes: gr.Textbox, template: gr.Textbox) -> None:
        """Add the tab with several images: a sheet of predictions, and a CSV file."""
        texts, titles = self.texts, [model.title for model in self.models]
        with gr.Row():
            files = gr.File(file_count="multiple", label=texts["files"].format(count=MAX_IMAGES), height=200)
            with gr.Column():
                chosen = gr.Dropdown(titles, value=titles[-1], type="index", label=texts["model"], filterable=False)
                button = gr.Button(texts["classify"], variant="primary")
                table = gr.File(label=texts["csv"], interactive=False)
        note = gr.Markdown()
        options = {"show_label": False, "interactive": False, "buttons": ["download", "fullscreen"]}
        sheet = gr.Image(label=texts["sheet"], format="png", elem_id="sheet", **options)
        predict, inputs = self._show_errors(self.predict_files), [files, chosen, classes, template]
        button.click(predict, inputs, [sheet, table, note], show_progress_on=[sheet, table], **ONE_AT_A_TIME)

    def _choose_example(self, event: gr.SelectData) -> str:
        """Return the path of the example that was chosen."""
        return self.examples[event.index][0]

    def _show_errors(self, function: Callable) -> Callable:
        """Return ``function``, whose :class:`UserError` is shown on the page until it is closed."""

        @wraps(function)
        def show_errors(*args):
            """Return the result of ``function``."""
            try:
                return function(*args)
            except UserError as error:
                raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

        return show_errors

    def parse_classes(self, text: str, template: str) -> tuple[list[str], list[str]]:
        """Return the class names and templates of the text boxes; :class:`UserError` if they cannot be used.

        Class names are the lines; of a single line, the parts between commas.
        """
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        names = lines if len(lines) > 1 else [part.strip() for part in COMMAS.split(text) if part.strip()]
        if not names:
            raise UserError(self.texts["no_classes"])
        check_classnames(names)
        templates = [line.strip() for line in template.splitlines() if line.strip()]
        if templates:
            check_template(templates, self.texts["template"])
        return names, templates

    def compare(self, path: str | None, classes: str, template: str) -> list:
        """Return, for the image at ``path``, {class: probability} and Markdown of each model, and rows of the table.

        A model that refuses the classes has no probabilities, and its Markdown says why. Without an image, all is
        empty.
        """
        if path is None:
            return [*[None] * len(self.models), *(model.facts for model in self.models), None]
        names, templates = self.parse_classes(classes, template)
        scores: list[dict[str, float] | None] = []
        facts = []
        for model in self.models:
            try:
                ((_, result),) = model.classify([path], names, templates)
            except UserError as error:
                scores.append(None)
                facts.append(f"{model.facts}\n\n{self.texts['refused'].format(error=error)}")
                continue
            if isinstance(result, UserError):
                raise UserError(_hide_folder(result, path))
            scores.append({entry["class"]: entry["probability"] for entry in result[0]})
            facts.append(model.facts)
        rows = [[name, *(f"{score[name]:.2%}" if score else "-" for score in scores)] for name in names]
        return [*scores, *facts, rows]

    def show_words(self, runs: Sequence[ComparedModel], index: int) -> tuple:
        """Return a note, and the table of the words nearest to the context of ``runs[index]``; or only why not."""
        run = runs[index]
        try:
            words = find_context_words(run.source, None, run.backbone, run.weights, NUM_WORDS)
        except UserError as error:
            return self.texts["no_context"].format(title=run.title, error=error), gr.Dataframe(visible=False)
        rows = [[name, token, nearest] for name, table in words.tables for token, nearest in table]
        headers = [self.texts["class"], self.texts["token"], self.texts["words"]]
        if not words.tables[0][0]:  # the classes share the context
            headers, rows = headers[1:], [row[1:] for row in rows]
        note = self.texts["words_note"].format(file=words.checkpoint, tokens=words.tokens, clip=words.clip)
        return note, gr.Dataframe({"headers": headers, "data": rows}, visible=True)

    def predict_files(self, files: list[str] | None, index: int, classes: str, template: str) -> tuple:
        """Return the sheet, the CSV file, and a note on unreadable files, for the images by ``models[index]``."""
        if not files:
            raise UserError(self.texts["no_files"])
        if len(files) > MAX_IMAGES:
            raise UserError(self.texts["too_many"].format(count=len(files), limit=MAX_IMAGES))
        names, templates = self.parse_classes(classes, template)
        sheet, errors = [], []
        for path, result in self.models[index].classify(files, names, templates, with_thumbnails=True):
            if isinstance(result, UserError):
                errors.append(_hide_folder(result, path))
            else:
                sheet.append((path, result[1], result[0][:TOP_K]))
        if not sheet:
            raise UserError("\n".join(errors))
        folder = Path(tempfile.mkdtemp(dir=self.folder))  # a new one, as browsers cache files by their addresses
        write_contact_sheet(str(folder / "sheet.png"), sheet)
        _write_csv(folder / "predictions.csv", sheet)
        note = self.texts["unreadable"].format(count=len(errors), total=len(files)) if errors else ""
        note += "".join(f"\n* {html.escape(error)}" for error in errors)
        return str(folder / "sheet.png"), str(folder / "predictions.csv"), note


def _write_csv(path: Path, sheet: Sequence[tuple]) -> None:
    """Write (image path, picture, predictions) of each image as CSV; the columns are named as in a run's file."""
    ranks = range(1, 1 + len(sheet[0][2]))
    header = ["image", *(f"top{rank}_{column}" for rank in ranks for column in ("class", "probability"))]
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with the mark by which Excel knows UTF-8
        writer = csv.writer(file)
        writer.writerow(header)
        for name, _, predictions in sheet:
            scores = [value for entry in predictions for value in (entry["class"], f"{entry['probability']:.6g}")]
            writer.writerow([Path(name).name, *scores])


def _hide_folder(error: UserError, path: str) -> str:
    """Return the message of ``error`` with the name of the uploaded file at ``path`` in place of its path."""
    return str(error).replace(f"{Path(path).parent}{os.sep}", "")
