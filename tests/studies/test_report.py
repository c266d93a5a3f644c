"""The report's content: its answer, tables, figures and files, against figures counted here from the same runs."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from studies.report.analysis import compute_calibration
from studies.report.collect import read_curve
from studies.report.page import Texts
from studies.tables.predictions import Predictions
from studies.tables.runs import Run
from tests.studies.records import SHA, write_run
from tools.report import main

CLASSES = ["cat", "<script>alert(1)</script>", "50% & more_or_less"]
IMAGES, SEEDS = 240, (1, 2, 3)
RIGHT = {"ZeroshotCLIP": 0.5, "CoOp": 0.75, "LinearProbe": 0.97}  # how often a method is right
NAME = "Linear probe"  # of LinearProbe in tables
PARAMETERS = {"ZeroshotCLIP": 0, "CoOp": 2048, "LinearProbe": 650}
CURVE = "epoch [{0}/3] batch [2/2] time 0.1 (0.1) loss 9.0 ({1:.4f}) acc 50.0 (50.0) lr 2.0000e-03 eta 0:00:01\n"


def predict(trainer: str, seed: int, shots: int) -> dict[str, np.ndarray]:
    """Return labels, the three classes by probability and the probabilities of a run's predictions, drawn at random."""
    rng = np.random.default_rng([len(trainer), seed, shots])
    labels = np.arange(IMAGES) % 3
    wrong = (labels + rng.integers(1, 3, IMAGES)) % 3
    top = np.where(rng.random(IMAGES) < RIGHT[trainer], labels, wrong)
    classes = np.stack([top, (top + 1) % 3, (top + 2) % 3], axis=1)
    first = rng.uniform(0.4, 1, IMAGES).round(4)
    return {"labels": labels, "classes": classes, "first": first}


def write_predictions(folder, labels, classes, first) -> None:
    """Write predictions.csv as a run does; the second and third class share what the first leaves."""
    heads = ["path", "label", "class", "probability"]
    heads += [f"top{rank}{column}" for rank in (1, 2, 3) for column in ("", "_class", "_probability")]
    with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for number, (label, top, p) in enumerate(zip(labels, classes, first, strict=True)):
            probabilities = [p, (1 - p) / 2, (1 - p) / 2]
            parts = [part for c, q in zip(top, probabilities, strict=True) for part in (c, CLASSES[c], f"{q:.6g}")]
            writer.writerow([f"pets/{label}/{number}.png", label, CLASSES[label], 0.1, *parts])


def write_study_run(folder, trainer, seed, shots, **record):
    """Write a run with its predictions, log and record."""
    run = predict(trainer, 0 if trainer == "ZeroshotCLIP" else seed, shots)
    correct = int((run["labels"] == run["classes"][:, 0]).sum())
    group = {"ZeroshotCLIP": "training-free", "CoOp": "prompts", "LinearProbe": "features"}[trainer]
    record = {"group": group, "trainable_parameters": PARAMETERS[trainer], "classnames": CLASSES, **record}
    record |= {"correct": correct, "total": IMAGES, "seconds": 4.0 + seed, "dataset": "Pets"}
    config = {"DATASET.ROOT": str(folder.parents[2] / "data"), **record.pop("config", {})}
    write_run(folder, 100 * correct / IMAGES, trainer=trainer, seed=seed, shots=shots, config=config, **record)
    write_predictions(folder, **run)
    (folder / "log.txt").write_text("".join(CURVE.format(e, 1 / e) for e in (1, 2, 3)), encoding="utf-8")
    return folder


def write_study(folder):
    """Write a study of 3 classes, zero-shot, and CoOp and LinearProbe at 1 and 4 shots with three seeds; return it."""
    write_study_run(folder / "zero/none", "ZeroshotCLIP", 1, 0)
    for trainer in ("CoOp", "LinearProbe"):
        for shots in (1, 4):
            for seed in SEEDS:
                costs = {"cpu_seconds": 10.0 * seed, "peak_memory": seed * 100 * 2**20}
                costs |= {"earlier_runs": 2} if trainer == "CoOp" else {}
                write_study_run(folder / f"{trainer}/{shots}_{seed}", trainer, seed, shots, **costs)
    return folder


@pytest.fixture
def study(tmp_path):
    """The folder of the study."""
    return write_study(tmp_path / "pets")


def read_page(folder, *arguments, name="report.html") -> tuple[str, dict]:
    """Write the report; return the page without its scripts, and the data in it."""
    assert main([str(folder), *arguments]) == 0
    page = (folder / name).read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)[1])
    return re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL), data


def read_text(page: str) -> str:
    """Return the text of a page, with single spaces."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def get_option(data, plot, *key) -> dict:
    """Return a choice of a plot."""
    return next(option for option in data["plots"][plot]["options"] if option["key"] == [*key])


def mean_accuracy(trainer, shots) -> float:
    """Return the mean accuracy in percent of a method over seeds, counted from the predictions."""
    runs = [predict(trainer, seed, shots) for seed in SEEDS]
    return 100 * np.mean([run["labels"] == run["classes"][:, 0] for run in runs])


def test_the_first_screen_answers_the_question_of_the_study(study):
    text = read_text(read_page(study)[0])
    best, zero = mean_accuracy("LinearProbe", 4), predict("ZeroshotCLIP", 0, 0)
    zero = 100 * np.mean(zero["labels"] == zero["classes"][:, 0])
    assert f"With 4 shots, Linear probe has the highest accuracy: {best:.2f} ±" in text
    assert f"That is {best - zero:.2f} ±" in text
    assert f"points above Zero-shot CLIP ({zero:.2f}%; 95% interval, paired over 3 seeds and 240 test images)" in text
    assert "Linear probe has the fewest trainable parameters: 650" in text
    assert "4 shots Linear probe" in text
    assert "Yes: shown above all others (2)." in text
    assert "Methods 3: Zero-shot CLIP, Linear probe, CoOp (Standard)" in text
    assert "choosing the best of many methods" in text


def test_with_one_seed_the_page_says_what_certainty_takes(tmp_path):
    for trainer, shots in (("ZeroshotCLIP", 0), ("CoOp", 1), ("LinearProbe", 1)):
        write_study_run(tmp_path / f"pets/{trainer}/run", trainer, 1, shots)
    text = read_text(read_page(tmp_path / "pets")[0])
    assert "Cannot be told (2 comparisons): it takes two seeds or more" in text
    assert "certainty takes several seeds: python tools/sweep.py" in text
    assert "--seeds 1,2,3" in text
    assert "is shown to be better" not in text


def test_a_cell_that_does_not_compare_is_hollow_and_not_in_the_answer(study):
    for seed in SEEDS:
        folder = study / f"LinearProbe/4_{seed}"
        write_study_run(folder, "LinearProbe", seed, 4, splits={"test": {"images": IMAGES, "sha256": SHA["b"]}})
    page, data = read_page(study)
    text = read_text(page)
    assert "With 1 shot, Linear probe has the highest accuracy" in text  # more methods compare there than at 4
    assert "4 shots CoOp (Standard)" in text
    assert "† Does not compare with the others" in text
    trace = next(t for t in get_option(data, "shots")["data"] if t["name"] == "Linear probe†")
    assert [symbol.endswith("-open") for symbol in trace["marker"]["symbol"]] == [False, True]
    assert NAME not in get_option(data, "classes", "4 shots")["data"][0]["y"]
    front = get_option(data, "parameters", "4 shots")["data"][0]
    assert max(front["y"]) == pytest.approx(mean_accuracy("CoOp", 4))


def test_names_from_outside_are_shown_as_text(study):
    page, data = read_page(study)
    assert "alert(1)" not in page.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")
    raw = (study / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert (
        get_option(data, "classes", "4 shots")["data"][0]["x"][1] == "&lt;script&gt;alert(1)&lt;/script&gt;"
    )  # Plotly
    assert CLASSES[1] in get_option(data, "confusion", "CoOp (Standard)", "4 shots")["note"]  # set as textContent
    assert "default-src 'none'" in raw


def test_plots_hold_the_figures_of_the_runs(study):
    data = read_page(study)[1]
    traces = {trace["name"]: trace for trace in get_option(data, "shots")["data"]}
    assert traces["CoOp (Standard)"]["y"] == pytest.approx([mean_accuracy("CoOp", s) for s in (1, 4)], abs=1e-4)
    assert data["plots"]["shots"]["layout"]["xaxis"]["tickvals"] == [0, 2]  # log2 of 1 and 4, and nothing between
    assert traces["Chance"]["y"] == pytest.approx([100 / 3] * 2)
    xs = [traces[name]["x"][0] for name in (NAME, "CoOp (Standard)")]
    assert xs[0] < 0 < xs[1]  # side by side
    assert sum(xs) == pytest.approx(0)
    front, *points = get_option(data, "parameters", "4 shots")["data"]
    assert front["line"]["shape"] == "hv"
    places = {point["name"]: point["x"][0] for point in points}
    assert places["CoOp (Standard)"] == pytest.approx(np.log10(2048))
    assert places["Zero-shot CLIP"] < data["plots"]["parameters"]["layout"]["shapes"][0]["x0"] < np.log10(650)


def test_classes_and_confusions_are_counted_over_seeds(study):
    data = read_page(study)[1]
    runs = [predict("CoOp", seed, 4) for seed in SEEDS]
    counts = np.zeros((3, 3), dtype=int)
    for run in runs:
        for label, predicted in zip(run["labels"], run["classes"][:, 0], strict=True):
            counts[label, predicted] += 1
    heat = get_option(data, "confusion", "CoOp (Standard)", "4 shots")["data"][0]
    assert heat["text"] == counts.tolist()
    assert np.allclose(heat["z"], 100 * counts / (3 * IMAGES / 3), atol=0.01)
    rates = get_option(data, "classes", "4 shots")["data"][0]
    assert np.allclose(rates["z"][rates["y"].index("CoOp (Standard)")], 100 * counts.diagonal() / IMAGES, atol=0.01)
    wrong = counts * ~np.eye(3, dtype=bool)
    true, predicted = divmod(int(wrong.argmax()), 3)
    note = get_option(data, "confusion", "CoOp (Standard)", "4 shots")["note"]
    assert note.startswith(f"Most often wrong: {CLASSES[true]} taken for {CLASSES[predicted]}, {wrong.max()} of 240;")


def test_calibration_errors_equal_those_counted_by_hand():
    """Confidences 0.95, 0.95, 0.55, 0.55: the bins (14/15, 1] and (8/15, 9/15] have gaps of 0.45 and 0.05."""
    labels, top = np.array([0, 0, 0, 0]), np.array([[0], [1], [0], [1]])
    run = Predictions((), labels, top, np.array([[0.95], [0.95], [0.55], [0.55]]))
    counts, accuracy, confidence, errors = compute_calibration([run])
    assert errors == pytest.approx([100 * (0.5 * 0.45 + 0.5 * 0.05)])
    assert counts.tolist() == [0] * 8 + [2] + [0] * 5 + [2]
    assert accuracy[[8, 14]] == pytest.approx([50, 50])
    assert confidence[[8, 14]] == pytest.approx([55, 95])
    edge = Predictions((), labels[:1], top[:1], np.array([[3 / 15]]))
    assert compute_calibration([edge])[0].argmax() == 2  # bins are (low, high]


def test_the_page_has_the_calibration_error_averaged_over_seeds(study):
    errors = []
    for seed in SEEDS:
        run = predict("CoOp", seed, 4)
        correct, error = run["labels"] == run["classes"][:, 0], 0.0
        for number in range(15):
            inside = (run["first"] > number / 15) & (run["first"] <= (number + 1) / 15)
            if inside.any():
                error += inside.mean() * abs(correct[inside].mean() - run["first"][inside].mean())
        errors.append(100 * error)
    note = get_option(read_page(study)[1], "reliability", "CoOp (Standard)", "4 shots")["note"]
    assert note.startswith(f"Expected calibration error: {np.mean(errors):.2f} points")


def test_the_gallery_has_the_most_confident_mistakes_with_their_images(study):
    for label in range(3):
        folder = study.parent / f"data/pets/{label}"
        folder.mkdir(parents=True)
        for number in range(label, IMAGES, 3):
            Image.new("RGB", (9, 9), (number, 7, 7)).save(folder / f"{number}.png")
    page = read_page(study)[0]
    mistakes = {}
    for seed in SEEDS:
        run = predict("LinearProbe", seed, 4)
        for i in np.flatnonzero(run["labels"] != run["classes"][:, 0]):
            mistakes[i] = max(mistakes.get(i, 0), run["first"][i])
    expected = sorted(mistakes, key=lambda i: -mistakes[i])[:24]
    gallery = page.partition('id="gallery"')[2].partition("</details>")[0]
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)"', gallery)
    pixels = [Image.open(io.BytesIO(base64.b64decode(image))).getpixel((0, 0))[0] for image in images]
    assert pixels == expected
    assert page.count("<img src=") <= 48
    assert f"{expected[0] % 3}/{expected[0]}.png" in gallery


@pytest.mark.parametrize(
    ("config", "sentence"),
    [({}, "Images were not found in"), ({"DATASET.FEATURES": "a.npz"}, "there are no images to show")],
)
def test_missing_images_are_said(tmp_path, config, sentence):
    write_study_run(tmp_path / "pets/zero/run", "ZeroshotCLIP", 1, 0, config=config)
    text = read_text(read_page(tmp_path / "pets")[0])
    assert sentence in text
    assert ("image not found" in text) == (not config)  # of features, no frames without an image


@pytest.mark.parametrize("name", ["../secret.png", "{out}/secret.png", "pets/../../secret.png", "link.png"])
def test_images_outside_the_data_are_not_in_the_page(tmp_path, name):
    folder, root = write_study_run(tmp_path / "pets/zero/run", "ZeroshotCLIP", 1, 0), tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (root / "pets").mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    path = folder / "predictions.csv"
    path.write_text(re.sub(r"(?m)^pets/\d/\d+.png", name.format(out=tmp_path), path.read_text()))
    page = read_page(tmp_path / "pets", "--root", str(root))[0]
    assert "<img src=" not in page
    assert "image not found" in page


@pytest.mark.parametrize(
    ("pattern", "replacement", "reason"),
    [
        (r",2,", ",99999999999999999999,", "too large"),
        (r"(?s)\A.*", "", "it is cut, or lacks columns"),
        (r"(?s).{500}\Z", "", "it is cut, or lacks columns"),
        (r"top1_prob", "top1_other", "does not have the results of the record"),
        (r"0\.\d+$", "nan", "a probability is not from 0 to 1"),
        (r"(?m)^(pets/0/0.png),0", r"\1,-1", "a label is negative"),
        (r"(pets/2/2.png),2,", r"\1,7,", "of other classes"),
    ],
)
def test_damaged_predictions_are_named_in_the_page(study, pattern, replacement, reason):
    path = study / "LinearProbe/4_1/predictions.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, replacement, text), encoding="utf-8")
    record = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))
    if "7" in replacement:
        record["correct"] -= text.partition("pets/2/2.png,2,")[2].split(",")[2] == "2"
    (path.parent / "result.json").write_text(json.dumps(record), encoding="utf-8")
    unread = read_page(study)[0].partition("Runs that are not here")[2].partition("</details>")[0]
    assert str(path.parent) in unread
    assert reason in read_text(unread)


def test_the_best_method_is_not_above_one_that_the_shared_seeds_show_to_be_better(tmp_path, monkeypatch):
    """CoOp has the higher mean, by the seeds that the other method lacks."""
    for seeds, right in (((1, 2, 3), 0.5), (range(4, 20), 1.0)):
        monkeypatch.setitem(RIGHT, "CoOp", right)
        for seed in seeds:
            write_study_run(tmp_path / f"pets/a/{seed}", "CoOp", seed, 4)
    monkeypatch.setitem(RIGHT, "LinearProbe", 0.9)
    for seed in (1, 2, 3):
        write_study_run(tmp_path / f"pets/b/{seed}", "LinearProbe", seed, 4)
    text = read_text(read_page(tmp_path / "pets")[0])
    assert "CoOp (Standard) has the highest accuracy" in text
    assert "Cannot be told (1 comparisons): with the seeds that both have, the other one is more accurate." in text


def test_records_of_earlier_versions_have_a_report(study):
    for path in study.rglob("result.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        for key in ("dataset", "weights", "machine", "splits", "classnames", "command", "group", "models"):
            record.pop(key, None)
        record["config"] = {key: record["config"][key] for key in ("TRAINER",)} | {
            "DATASET": {"NUM_SHOTS": record["config"]["DATASET"]["NUM_SHOTS"]}
        }
        path.write_text(json.dumps(record), encoding="utf-8")
    assert "Linear probe has the highest accuracy" in read_text(read_page(study)[0])


def test_a_study_whose_trained_runs_all_do_not_compare_has_a_report(tmp_path):
    for name, template in (("a", "a {}."), ("b", "the {}.")):
        write_study_run(tmp_path / f"pets/{name}/1", "ZeroshotCLIP", 1, 0, config={"DATASET.TEMPLATE": [template]})
    write_study_run(tmp_path / "pets/c/1", "CoOp", 1, 4, splits={"test": {"images": IMAGES, "sha256": SHA["b"]}})
    assert "no method that compares has a higher accuracy than Zero-shot CLIP" in read_text(
        read_page(tmp_path / "pets")[0]
    )


def test_classes_with_one_name_are_told_apart(tmp_path):
    write_study_run(tmp_path / "pets/a/1", "ZeroshotCLIP", 1, 0, classnames=["cat", "7", "cat"])
    data = read_page(tmp_path / "pets")[1]
    assert data["plots"]["confusion"]["options"][0]["data"][0]["x"] == ["cat (0)", "7", "cat (2)"]
    assert data["plots"]["confusion"]["layout"]["xaxis"]["type"] == "category"


def test_names_are_no_formulas_in_the_table_for_spreadsheets(tmp_path):
    write_study_run(tmp_path / "pets/a/1", "LinearProbe", 1, 1, method="=cmd|' /C calc'!A0")
    page = read_page(tmp_path / "pets")[0]
    content = base64.b64decode(re.search(r'results\.csv" href="data:[^,]+,([^"]+)"', page)[1]).decode("utf-8-sig")
    assert content.splitlines()[1].startswith("'=cmd")


def test_the_table_for_download_is_that_of_the_page(study):
    page = read_page(study)[0]
    links = dict(re.findall(r'download="(results\.\w+)" href="data:[^,]+,([^"]+)"', page))
    rows = [*csv.reader(io.StringIO(base64.b64decode(links["results.csv"]).decode("utf-8-sig")))]
    cell = next(row for row in rows if row[0] == NAME)[3]
    assert cell.startswith(f"{mean_accuracy('LinearProbe', 4):.2f} ± ")
    assert cell in read_text(page)
    latex = base64.b64decode(links["results.tex"]).decode()
    assert "Linear probe & - & " in latex
    assert cell.replace("±", r"$\pm$") in latex
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert "±" not in latex.partition(r"\end{tabular}")[0]


def test_latex_is_escaped(tmp_path):
    write_study_run(
        tmp_path / "pets/a/b", "CoOp", 1, 1, method="A_b & 5%", config={"TRAINER.COOP.CTX_INIT": "x_y & 5%"}
    )
    page = read_page(tmp_path / "pets")[0]
    latex = base64.b64decode(re.search(r'results\.tex" href="data:[^,]+,([^"]+)"', page)[1]).decode()
    assert r"x\_y \& 5\%" in latex


def test_costs_are_ranges_with_the_reasons_to_doubt_them(study):
    write_study_run(study / "LinearProbe/4_1", "LinearProbe", 1, 4, resumed_epoch=2)
    cost = read_text(read_page(study)[0].partition('id="cost"')[2].partition("</section>")[0])
    assert "CoOp (Standard) 5.0 to 7.0 10.0 to 30.0 ≤ 100 to 300 2,048" in cost
    assert "Linear probe 5.0 to 7.0‡ 20.0 to 30.0‡ 200 to 300‡ 650" in cost
    assert "Zero-shot CLIP 5.0 not recorded not recorded 0" in cost


def test_comparisons_are_those_of_the_paired_analysis(study):
    compare = read_page(study)[1]["compare"]
    first, second = (compare["rows"].index(name) for name in (NAME, "CoOp (Standard)"))
    difference, _, seeds, images = compare["results"][f"{first},{second}"][compare["columns"].index("4 shots")]
    assert difference == pytest.approx(mean_accuracy("LinearProbe", 4) - mean_accuracy("CoOp", 4), abs=0.001)
    assert (seeds, images) == (3, IMAGES)
    zero = compare["results"][f"0,{first}"][compare["columns"].index("all shots together")]
    run = predict("ZeroshotCLIP", 0, 0)
    trained = (mean_accuracy("LinearProbe", 1) + mean_accuracy("LinearProbe", 4)) / 2
    assert zero[0] == pytest.approx(100 * np.mean(run["labels"] == run["classes"][:, 0]) - trained, abs=0.001)


@pytest.mark.parametrize(
    ("log", "points"),
    [
        (CURVE.format(1, 0.5) + "text\n" + CURVE.format(2, 0.25), [(1, 0.5, 0.002), (2, 0.25, 0.002)]),
        (CURVE.format(1, 0.5) + CURVE.format(1, 0.4), [(1, 0.4, 0.002)]),
        (CURVE.replace("{1:.4f}", "1e999").format(1) + CURVE.format("9" * 5000, 1), []),
        (CURVE.format(1, float("nan")) + "epoch [2/3] batch [1/2] loss a (b) lr c\n", []),
        ("", []),
        (None, []),
    ],
)
def test_learning_curves_are_read_from_odd_logs(tmp_path, log, points):
    if log is not None:
        (tmp_path / "log.txt").write_text(log, encoding="utf-8")
    assert read_curve(Run(tmp_path, {})) == points


def test_values_that_differ_between_runs_are_listed(study):
    write_study_run(study / "CoOp/1_1", "CoOp", 1, 1, code={"commit": "abc", "modified": True, "sha256": "0" * 64})
    text = read_text(read_page(study)[0].partition('id="provenance"')[2])
    assert "2 values (differs between runs)" in text
    assert "abc + changes" in text
    assert "python tools/rerun.py" in text
    assert f"python tools/report.py {study}" in text


def test_the_chinese_page_has_no_english_sentence(study):
    page = read_page(study, "--lang", "zh", name="report.zh.html")[0]
    text = read_text(re.sub(r"<details><summary>结果表的注释.*?</details>", "", page, flags=re.DOTALL))
    assert "Linear probe 的准确率最高" in text
    assert 'lang="zh-CN"' in page
    assert not re.findall(r"(?<!-)\b(?:the|with|are|seeds|accuracy)\b", text)


def test_every_sentence_is_in_both_languages_with_the_same_values():
    entries = Texts("en").entries
    for key, entry in entries.items():
        if key != "reasons":
            names = [set(re.findall(r"(?<!\{)\{(\w+)\}", entry[language])) for language in ("en", "zh")]
            assert names[0] == names[1], key


@pytest.mark.parametrize("reason", ["it takes two seeds or more that all these runs share", "their weights differ"])
def test_reasons_are_translated(reason):
    assert re.search("[一-鿿]", Texts("zh").translate_reason(reason))
    assert Texts("en").translate_reason(reason) == reason


def test_other_folders_are_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    write_study_run(
        tmp_path / "out/train_base/pets/shots_4/CoOp/tiny/seed1",
        "CoOp",
        1,
        4,
        config={"DATASET.SUBSAMPLE_CLASSES": "base"},
    )
    assert main([str(tmp_path / "out")]) == 2
    assert "tools/results_table.py" in capsys.readouterr().err
    assert not (tmp_path / "out/report.html").exists()


def test_runs_of_protocol_none_have_a_report_of_their_own(study):
    for seed in SEEDS:
        write_study_run(study / f"none/{seed}", "CoOp", seed, 4, config={"PROTOCOL": "none"})
    assert main([str(study)]) == 0
    page = (study / "report_protocol_none.html").read_text(encoding="utf-8")
    assert "nothing chosen on validation images" in page
    assert NAME not in read_text(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_the_command_of_all_runs_has_the_overrides_of_the_sweeps_command_line(tmp_path):
    """Not the shots and the number of tokens, which the sweep's file sets."""
    for trainer, shots, name in (("ZeroshotCLIP", 0, "ZeroshotCLIP"), ("CoOp", 1, "CoOp/tiny_1shots/seed1")):
        command = ["--trainer", trainer, "DATASET.NUM_SHOTS", "1", "TRAINER.COOP.N_CTX", "4", "OPTIM.MAX_EPOCH", "5"]
        config = {"DATASET.NAME": "Digits"}
        write_study_run(tmp_path / f"out/{name}", trainer, 1, shots, config=config, command=command)
    text = read_text(read_page(tmp_path / "out")[0])
    sweep = f"python tools/sweep.py configs/sweeps/digits.yaml --output-dir {tmp_path}/out --seeds"
    assert re.search(rf"{re.escape(sweep)} 1 --root \S+ OPTIM.MAX_EPOCH 5 python tools/report.py", text)
