"""The page of the demo, in Gradio, which must be installed: zero-shot CLIP beside the models of runs."""

from __future__ import annotations

import argparse
import html
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gradio as gr
import pandas as pd
import torch
import yaml

from dassl.engine.record import PREDICTIONS_FILE
from dassl.utils import Decoding, UserError, escape_formula, join_below
from vlm.clip.load import find_language, load_cached_clip
from vlm.text.templates import DEFAULT_TEMPLATES, check_template, list_templates

from .classifier import Classifier, build_from_run, build_zero_shot
from .classify import COMMAS, DEFAULT_BACKBONE, classify_images
from .contact_sheet import MAX_IMAGES, write_contact_sheet
from .interpret import find_context_words
from .trained_run import find_run_folder, load_run_cfg, read_record_if_any

TOP_K = 5  # classes shown by bars, on the sheet and in the CSV file; words of a token: the tools' defaults
NUM_EXAMPLES = 6  # images: two rows
MESSAGE_SECONDS = 20  # of an error on the page: it must not stand beside the next result for long
DELETE_CACHE = (600, 3600)  # seconds between deletions of uploads and results, and the age of those to delete
TABLE = {"interactive": False, "wrap": True, "buttons": []}
# Handlers run one at a time, as models share one CLIP; an event that comes while its handler runs is not dropped.
EVENT = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private", "trigger_mode": "always_last"}


@dataclass(frozen=True)
class ComparedModel:
    """Zero-shot CLIP (``source`` None), or the model at ``source``: a run that learned ``classnames``, or a prompt."""

    title: str
    facts: str  # Markdown
    source: Path | None
    backbone: str
    weights: str
    classnames: tuple[str, ...] = ()

    def classify(self, paths: list[str], names: Sequence[str], templates: Sequence[str]) -> Iterator[tuple]:
        """Yield (path, thumbnail, {class: probability}) of each image; for an unreadable one, (path, error, {})."""
        names = self.classnames if {*names} == {*self.classnames} else tuple(names)  # some methods need their order
        classifier = _build_classifier(self, names, () if self.source else tuple(templates))
        decoding = classifier.decoding or Decoding(orientation="exif")  # the default of predict.py
        for path, result in classify_images(classifier, paths, decoding, MAX_IMAGES, with_thumbnails=True):
            if isinstance(result, UserError):  # uploads are known by their names alone
                yield path, str(result).replace(path, Path(path).name), {}
            else:
                yield path, result[1], dict(zip(names, result[0].softmax(-1).tolist(), strict=True))


@lru_cache(maxsize=8)  # for the latest classes and templates; that of a fine-tuned CLIP holds a copy of it
def _build_classifier(model: ComparedModel, names: tuple[str, ...], templates: tuple[str, ...]) -> Classifier:
    """Return the classifier of ``model`` for classes ``names``; only zero-shot CLIP has ``templates``."""
    with torch.random.fork_rng(devices=[]):  # load_cached_clip caches by the random state
        if model.source is None:
            return build_zero_shot(names, templates, model.backbone, model.weights)
        backbone = "" if find_run_folder(model.source) else model.backbone
        return build_from_run(model.source, names, None, model.weights, backbone)


def _describe_run(source: Path, number: int, args: argparse.Namespace, texts: dict[str, str]) -> ComparedModel:
    """Return the model at ``source``, not loaded; its title begins with ``number``, as two runs may be alike."""
    folder, backbone = find_run_folder(source), args.backbone or ""
    if folder is None and (backbone or args.weights):
        facts = texts["prompt_facts"].format(backbone=args.weights or backbone)
        return ComparedModel(f"{number}. {texts['prompt']}", f"{facts}  \n`{source}`", source, backbone, args.weights)
    cfg, record = load_run_cfg(folder or source), read_record_if_any(folder or source)
    backbone, weights = cfg.MODEL.BACKBONE.NAME, args.weights or cfg.MODEL.BACKBONE.WEIGHTS
    title = texts["run"].format(
        number=number, method=record.get("method", "?"), shots=cfg.DATASET.NUM_SHOTS, seed=cfg.SEED
    )
    facts = texts["run_facts"].format(backbone=weights or backbone, count=record.get("trainable_parameters", 0))
    classnames = tuple(str(name) for name in record.get("classnames", args.classes))
    return ComparedModel(title, f"{facts}  \n`{source}`", source, backbone, weights, classnames)


def load_models(args: argparse.Namespace, texts: dict[str, str]) -> list[ComparedModel]:
    """Return zero-shot CLIP and the models of ``args.runs``, loaded; UserError if their CLIPs differ."""
    runs = [_describe_run(Path(source), number, args, texts) for number, source in enumerate(args.runs, 1)]
    clips = {(run.backbone, run.weights) for run in runs} or {(args.backbone or DEFAULT_BACKBONE, args.weights)}
    backbone, weights = next(iter(clips))
    if len(clips | {(args.backbone or backbone, weights)}) > 1:
        names = ", ".join(sorted({args.backbone or backbone, *(file or name for name, file in clips)}))
        raise UserError(f"different CLIPs ({names}): zero-shot CLIP stands beside runs of one CLIP alone")
    with torch.random.fork_rng(devices=[]):
        load_cached_clip(backbone, weights, "fp32", "cuda" if torch.cuda.is_available() else "cpu")
    for run in runs:  # which checks them
        print(f"Loading {run.title} ({run.source})", file=sys.stderr)
        _build_classifier(run, run.classnames or tuple(args.classes), ())
    facts = texts["zero_shot_facts"].format(backbone=weights or backbone)
    return [ComparedModel(texts["zero_shot"], facts, None, backbone, weights), *runs]


def find_examples(folder: Path) -> list[tuple[Path, str]]:
    """Return (path, class) of a few evenly spaced test images of the run in ``folder``."""
    rows = pd.read_csv(folder / PREDICTIONS_FILE, dtype=str, keep_default_na=False)
    root, step = Path(load_run_cfg(folder).DATASET.ROOT).expanduser(), max(len(rows) // NUM_EXAMPLES, 1)
    chosen = rows[step // 2 :: step][:NUM_EXAMPLES]
    examples = []
    for name, label in zip(chosen["path"], chosen["class"], strict=True):
        with suppress(UserError):  # it leads out of the folder
            examples.append((join_below(root, name), label))
    return [(path, label) for path, label in examples if path.is_file()]


@contextmanager
def _errors_on_page() -> Iterator[None]:
    """Show a ``UserError`` of the body, or of a decorated function, on the page for a while."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(str(error)), duration=MESSAGE_SECONDS, print_exception=False) from error


class DemoPage:
    """The page for the options ``args`` of the demo, with its models; results are written below ``folder``."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.texts = yaml.safe_load(Path(__file__).with_name("demo.yaml").read_text(encoding="utf-8"))[args.lang]
        self.models, self.folder = load_models(args, self.texts), folder
        self.titles = [model.title for model in self.models]
        folders = [folder for model in self.models[1:] if (folder := find_run_folder(model.source))]
        self.classnames = args.classes or next((model.classnames for model in self.models if model.classnames), ())
        default = [load_run_cfg(path).DATASET.TEMPLATE for path in folders[:1]]
        self.templates = list_templates(*default or [DEFAULT_TEMPLATES[find_language(self.models[0].backbone)]])
        self.examples = next((find_examples(path) for path in folders if (path / PREDICTIONS_FILE).is_file()), [])

    def build(self) -> gr.Blocks:
        """Return the page, to be launched."""
        texts, titles = self.texts, self.titles
        with gr.Blocks(title=texts["title"], analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
            gr.Markdown(f"# {texts['title']}\n{texts['intro']}")
            with gr.Row():
                boxes = []
                for name, lines, rows in (("classes", self.classnames, 3), ("template", self.templates, 1)):
                    options = {"label": texts[name], "info": texts[f"{name}_info"], "min_width": 320}
                    boxes.append(gr.Textbox("\n".join(lines), placeholder="cup\nred envelope", lines=rows, **options))
            with gr.Tab(texts["image_tab"]):
                self._add_image_tab(boxes)
            with gr.Tab(texts["words_tab"]) as tab:
                gr.Markdown(texts["words_intro" if titles[1:] else "no_runs"])
                if titles[1:]:
                    chosen = gr.Dropdown(titles[1:], type="index", label=texts["learned"], filterable=False)
                    note, headers = gr.Markdown(), [texts["token"], texts["words"]]
                    outputs = [note, gr.Dataframe(headers=headers, visible=False, **TABLE)]
                    gr.on([tab.select, chosen.change], self.show_words, chosen, outputs, **EVENT)
            with gr.Tab(texts["folder_tab"]):
                with gr.Row():
                    files = gr.File(file_count="multiple", label=texts["files"].format(count=MAX_IMAGES), height=200)
                    with gr.Column():
                        chosen = gr.Dropdown(titles, type="index", label=texts["model"], filterable=False)
                        button = gr.Button(texts["classify"], variant="primary")
                        table = gr.File(label=texts["csv"], interactive=False)
                note, options = gr.Markdown(), {"show_label": False, "interactive": False, "elem_id": "sheet"}
                sheet = gr.Image(format="png", buttons=["download", "fullscreen"], **options)
                options = {"show_progress_on": [sheet, table], **EVENT}
                button.click(self.predict_files, [files, chosen, *boxes], [sheet, table, note], **options)
        return page

    def _add_image_tab(self, boxes: list[gr.Textbox]) -> None:
        """Add the tab with one image: bars for each model, and a table of all classes."""
        texts = self.texts

        def choose_example(event: gr.SelectData) -> str:
            """Return the path of the example that was chosen."""
            return gallery.value[event.index]["image"]["path"]

        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = gr.Image(label=texts["image"], placeholder=texts["drop_image"], height=280, elem_id="image")
                image.preprocess = self.find_upload  # type: ignore[method-assign]
                button = gr.Button(texts["classify"], variant="primary")
                if self.examples:
                    gr.Markdown(texts["examples"])
                    options = {"columns": 3, "object_fit": "contain", "allow_preview": False, "elem_id": "examples"}
                    gallery = gr.Gallery(self.examples, show_label=False, interactive=False, buttons=[], **options)
                    gallery.select(choose_example, None, image, api_visibility="private")
            with gr.Column(scale=2, min_width=320):
                labels, facts = [], []
                with gr.Row():
                    for model in self.models:
                        with gr.Column(min_width=220):
                            labels.append(gr.Label(label=model.title, num_top_classes=TOP_K))
                            facts.append(gr.Markdown(model.facts))
                table = gr.Dataframe(headers=[texts["class"], *self.titles], label=texts["table"], **TABLE)
        outputs, options = [*labels, *facts, table], {"show_progress_on": [*labels, table], **EVENT}
        gr.on([button.click, image.change], self.compare, [image, *boxes], outputs, **options)

    @_errors_on_page()
    def find_upload(self, payload) -> str | None:
        """Return the path of an image as it was uploaded, which Gradio would open with Pillow; None without one.

        UserError for a file elsewhere: of a request that does not call it a file ("meta"), Gradio checks no path.
        """
        path = payload and payload.path
        if path and self.folder.resolve() not in Path(path).resolve().parents:
            raise UserError(f"{Path(path).name} is no upload")
        return path

    def parse(self, classes: str, template: str) -> tuple[list[str], list[str]]:
        """Return class names (lines; of one line, parts between commas) and templates; UserError for unusable ones."""
        lines, templates = ([*filter(None, map(str.strip, text.splitlines()))] for text in (classes, template))
        names = lines if len(lines) > 1 else [*filter(None, map(str.strip, COMMAS.split(classes)))]
        if len(names) < 2 or len({*names}) < len(names):
            raise UserError(self.texts["wrong_classes"])
        if templates:
            check_template(templates, self.texts["template"])
        return names, templates

    @_errors_on_page()
    def compare(self, path: str | None, classes: str, template: str) -> list:
        """Return {class: probability} and Markdown of each model, and rows of the table; without an image, neither."""
        names, templates = self.parse(classes, template) if path else ([], [])
        scores, facts = [{} for _ in self.models], [model.facts for model in self.models]
        for number, model in enumerate(self.models if path else ()):
            try:
                ((_, error, scores[number]),) = model.classify([str(path)], names, templates)
            except UserError as refusal:  # such as of a method with weights for the classes of its run
                facts[number] += f"\n\n{self.texts['refused'].format(error=refusal)}"
            else:
                if not scores[number]:
                    raise UserError(error)
        table = [[name, *(f"{score[name]:.2%}" if score else "-" for score in scores)] for name in names]
        return [*(score or None for score in scores), *facts, table]

    def show_words(self, index: int) -> tuple:
        """Return a note, and the table of the words nearest to the context of a run; if it has none, why not."""
        run = self.models[1 + index]
        try:
            heading, tables = find_context_words(run.source, None, run.backbone, run.weights, TOP_K)
        except UserError as error:
            return self.texts["no_context"].format(title=run.title, error=error), gr.Dataframe(visible=False)
        rows = [[f"{name} {row[0]}".strip(), row[1]] for name, table in tables for row in table]
        return heading, gr.Dataframe(rows, visible=True)

    @_errors_on_page()
    def predict_files(self, files: list[str] | None, index: int, classes: str, template: str) -> tuple:
        """Return the sheet, the CSV file, and a note on unreadable files, for the images by ``models[index]``."""
        if not files or len(files) > MAX_IMAGES:
            raise UserError(self.texts["number_of_files"].format(count=len(files or []), limit=MAX_IMAGES))
        results = [*self.models[index].classify(files, *self.parse(classes, template))]
        errors, sheet, rows = [error for _, error, scores in results if not scores], [], []
        for path, picture, scores in (result for result in results if result[2]):
            best = sorted(scores, key=scores.__getitem__, reverse=True)[:TOP_K]
            ranked = [{"class": name, "probability": scores[name]} for name in best]
            sheet.append((f"uploads/{Path(path).name}", picture, ranked))
            rows.append({"image": escape_formula(Path(path).name), "top1_class": escape_formula(best[0]), **scores})
        if not sheet:
            raise UserError("\n".join(errors))
        folder = Path(tempfile.mkdtemp(dir=self.folder))  # a new one, as browsers cache files by their addresses
        write_contact_sheet(str(folder / "sheet.png"), sheet)
        pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False, encoding="utf-8-sig")  # a mark for Excel
        note = self.texts["unreadable"].format(count=len(errors), total=len(files))
        note = "\n* ".join([note, *map(html.escape, errors)]) if errors else ""
        return str(folder / "sheet.png"), str(folder / "predictions.csv"), note
