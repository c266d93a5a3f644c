"""predict.py demo: the page in Chromium, over a server that is started as a user starts it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import train
from dassl.utils import UserError, read_image
from datasets.digits import DIGIT_NAMES
from tests.browser import needs_chromium, open_page, save_screenshot
from tests.common import IS_WINDOWS, REPOSITORY
from tools import interpret_prompt

pytest.importorskip("gradio", reason="needs gradio: pip install gradio")
pytestmark = needs_chromium
TIMEOUT = 120_000  # milliseconds: Gradio starts slowly where several tests share two cores


@pytest.fixture(scope="module")
def runs(digits_root, tmp_path_factory) -> list[Path]:
    """Return the folders of a short run of CoOp and of one of the linear probe, on the digits."""
    folders = []
    for trainer in ("CoOp", "LinearProbe"):
        folders.append(tmp_path_factory.mktemp("runs") / trainer)
        argv = ["--root", digits_root, "--trainer", trainer, "--seed", 1, "--output-dir", folders[-1]]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        argv += ["DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "TRAINER.COOP.N_CTX", 3]
        assert train.main([str(argument) for argument in argv]) == 0
    return folders


def find_free_port() -> int:
    """Return the number of a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def start_demo(folder: Path, *arguments: object):
    """Start ``predict.py demo`` with its temporary files below ``folder``; yield (process, address of the page)."""
    command = [sys.executable, "predict.py", "demo", *map(str, arguments), "--port", str(find_free_port())]
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "OMP_NUM_THREADS": "1"}
    environment |= {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # where nothing listens
    with (folder / "errors.txt").open("w", encoding="utf-8") as errors:
        options = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "encoding": "utf-8"}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, **options)
        try:
            line = process.stdout.readline()
            assert "The demo is at" in line, (folder / "errors.txt").read_text(encoding="utf-8")
            yield process, re.search(r"http\S+", line)[0]
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def demo(runs, tmp_path_factory):
    """Return the address of a demo of ``runs``; at the end, no traceback has been printed."""
    folder = tmp_path_factory.mktemp("demo")
    with start_demo(folder, *runs) as (_, url):
        yield url
    errors = (folder / "errors.txt").read_text(encoding="utf-8")
    assert "Traceback" not in errors, errors


@pytest.fixture
def page(demo):
    """Return the demo's page in Chromium."""
    with open_page(demo) as page:
        page.set_default_timeout(TIMEOUT)
        yield page


@pytest.fixture
def three(digits_root) -> Path:
    """Return the path of a test image of the digit three."""
    return digits_root / "digits/images/val/3/0013.png"


def classify(page, classes: str | None = None, template: str | None = None) -> None:
    """Type ``classes`` and ``template`` into the page and click on the visible button "Classify"."""
    if classes is not None:
        page.get_by_role("textbox", name="Classes").fill(classes)
    if template is not None:
        page.get_by_role("textbox", name="Prompt template").fill(template)
    page.locator("button:visible", has_text="Classify").click()


def wait_for_results(page, names: list[str]) -> list[list[str]]:
    """Wait until the visible table has the classes ``names``, with results; return the other cells of each."""
    ready = "names => names.every((name, row) => ((cell) => cell(0) === name && cell(1).endsWith('%'))("
    ready += "column => document.querySelector(`[data-testid=cell-${row}-${column}]`)?.innerText.trim() ?? ''))"
    page.wait_for_function(ready, arg=names)
    rows = [page.locator(f"[data-testid^=cell-{row}-]:visible").all_inner_texts() for row in range(len(names))]
    return [[cell.strip() for cell in row[1:]] for row in rows]


def probabilities(call, image: Path, *arguments: object) -> dict[str, float]:
    """Return class -> probability of ``predict.py IMAGE --json`` with ``arguments``."""
    result = call(image, "--json", "--top-k", 10, *arguments)
    assert result.code == 0, result.error
    return result.probabilities()


def assert_equal(column: list[str], names: list[str], expected: dict[str, float]) -> None:
    """Assert that the percentages in ``column`` are the probabilities of ``names``."""
    assert [float(cell.rstrip("%")) / 100 for cell in column] == pytest.approx([expected[n] for n in names], abs=1e-4)


def test_the_page_shows_the_probabilities_that_predict_prints(page, call, runs, three):
    names = list(DIGIT_NAMES)
    page.locator("input[type=file]").first.set_input_files(three)
    zero_shot, coop, probe = zip(*wait_for_results(page, names), strict=True)
    template = "a photo of the number {}."  # of the runs' config
    backbone = ("--backbone", "tiny", "--template", template, "--classes", *names)
    assert_equal(zero_shot, names, probabilities(call, three, *backbone))
    assert_equal(coop, names, probabilities(call, three, "--model-dir", runs[0]))
    assert_equal(probe, names, probabilities(call, three, "--model-dir", runs[1]))
    bars = page.locator("[data-testid=label-output-value]").all_inner_texts()
    assert [bar.strip() for bar in bars] == [names[max(range(10), key=lambda row: float(column[row].rstrip("%")))]
                                             for column in (zero_shot, coop, probe)]  # fmt: skip
    for fact in ("1. CoOp, 1-shot, seed 1", "384 trained parameters", str(runs[0])):
        assert page.get_by_text(fact).locator("visible=true").count()
    save_screenshot(page, "demo_image")


def test_other_classes_and_templates_and_the_runs_that_cannot_take_them(page, call, runs, three):
    page.locator("input[type=file]").first.set_input_files(three)
    wait_for_results(page, list(DIGIT_NAMES))
    classify(page, "three, red envelope", "a scan of {}")
    names = ["three", "red envelope"]
    zero_shot, coop, probe = zip(*wait_for_results(page, names), strict=True)
    backbone = ("--backbone", "tiny", "--template", "a scan of {}", "--classes", *names)
    assert_equal(zero_shot, names, probabilities(call, three, *backbone))
    assert_equal(coop, names, probabilities(call, three, "--model-dir", runs[0], "--classes", *names))
    assert probe == ("-", "-")
    assert "has weights for those alone" in page.inner_text("body")
    classify(page, "\n".join(reversed(DIGIT_NAMES)))  # the run's classes in another order
    *_, probe = zip(*wait_for_results(page, [*reversed(DIGIT_NAMES)]), strict=True)
    assert_equal(probe, [*reversed(DIGIT_NAMES)], probabilities(call, three, "--model-dir", runs[1]))


def test_examples_are_test_images_with_their_classes(page, digits_root):
    examples = page.locator("#examples button.thumbnail-item")
    examples.first.wait_for()
    assert examples.count() == 6
    captions = [caption.strip() for caption in examples.all_inner_texts()]
    assert set(captions) <= set(DIGIT_NAMES)
    assert len(set(captions)) > 3
    examples.nth(2).click()
    wait_for_results(page, list(DIGIT_NAMES))
    with urllib.request.urlopen(page.locator("#image img").get_attribute("src")) as response:
        content = response.read()
    images = (digits_root / "digits/images/val" / str(DIGIT_NAMES.index(captions[2]))).iterdir()
    assert content in [path.read_bytes() for path in images]


def test_the_words_are_those_of_interpret_prompt(page, runs, capsys):
    assert interpret_prompt.main([str(runs[0])]) == 0
    expected = re.findall(r"^ +\d  (.*\))$", capsys.readouterr().out, re.MULTILINE)
    assert len(expected) == 3
    page.get_by_role("tab", name="Words").click()
    page.wait_for_selector("[data-testid=cell-2-1]:visible")
    assert [page.locator(f"[data-testid=cell-{row}-1]:visible").inner_text().strip() for row in range(3)] == expected
    save_screenshot(page, "demo_words")
    page.get_by_role("combobox").click()
    page.get_by_role("option", name="Linear probe").click()
    page.wait_for_selector("text=has no context of learned tokens")
    assert not page.locator("[data-testid=cell-2-1]:visible").count()


def test_several_images_give_a_sheet_and_a_csv_file(page, call, runs, digits_root, tmp_path):
    images = [digits_root / f"digits/images/val/{digit}/{digit + 10:04}.png" for digit in (3, 4)]
    broken = tmp_path / "<b>cut.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    page.get_by_role("tab", name="Folder").click()
    classify(page)
    page.wait_for_selector("text=0 files: choose 1 to 60")
    page.locator("input[type=file]").last.set_input_files([*images, broken])
    page.wait_for_function("document.querySelectorAll('td.filename').length === 3")
    page.locator("[role=tabpanel]:visible").get_by_role("combobox").click()
    page.get_by_role("option", name="CoOp").click()
    classify(page)
    page.wait_for_selector("#sheet img")
    page.wait_for_function("document.querySelector('#sheet img').naturalWidth > 300")
    assert "1 of 3 could not be read" in page.inner_text("body")
    assert "cut.png as an image" in page.inner_text("body")
    sheet = page.locator("#sheet img").get_attribute("src")
    with page.expect_download() as download:
        page.locator("a[download='predictions.csv']").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["image"] for row in rows] == [path.name for path in images]
    for row, path in zip(rows, images, strict=True):
        expected = probabilities(call, path, "--model-dir", runs[0])
        assert row["top1_class"] == next(iter(expected))
        assert {name: float(row[name]) for name in DIGIT_NAMES} == pytest.approx(expected, abs=1e-5)
    save_screenshot(page, "demo_folder")
    classify(page, "three, four")
    page.wait_for_function("sheet => document.querySelector('#sheet img').src !== sheet", arg=sheet)


def write_bad_image(path: Path, kind: str, good: Path) -> Path:
    """Write a file to ``path`` that is no image: of ``kind`` text, empty, cut or huge; ``good`` is an image."""
    if kind == "huge":
        Image.new("1", (20_000, 10_000)).save(path)  # 200 million pixels
    else:
        with Image.open(good) as image:
            image.resize((256, 256)).save(path, "JPEG")
        path.write_bytes({"text": b"hello", "empty": b"", "cut": path.read_bytes()[:2000]}[kind])
    return path


def wait_for_message(page, text: str, screenshot: str = "") -> None:
    """Wait for the error with ``text`` on the page, take the ``screenshot`` if it has a name, and close the error."""
    message = page.locator("[data-testid=toast-body]", has_text=text)
    message.wait_for()
    if screenshot:
        save_screenshot(page, screenshot)
    message.locator("[data-testid=toast-close]").click()
    message.wait_for(state="detached")


def test_bad_images_and_classes_give_a_message_on_the_page(page, three, tmp_path):
    for kind in ("text", "empty", "cut", "huge"):
        path = write_bad_image(tmp_path / f"{kind}.png", kind, three)
        page.locator("input[type=file]").first.set_input_files(path)
        with pytest.raises(UserError) as error:
            read_image(path)
        message = str(error.value).replace(str(path), path.name)
        wait_for_message(page, message, "demo_error" if kind == "cut" else "")
        page.get_by_label("Remove Image").click()
        page.get_by_text("Drop an image here").wait_for()  # the next image comes at once, while this is handled
    page.locator("input[type=file]").first.set_input_files(three)
    wait_for_results(page, list(DIGIT_NAMES))
    for classes in (" ", "cup, cup", "cup"):
        classify(page, classes)
        wait_for_message(page, "at least two classes, and none of them twice")
    classify(page, "cup, cat", "no name")
    wait_for_message(page, '"no name" has no {} for the class name')
    classify(page, "cup, cat", "a {}")
    wait_for_results(page, ["cup", "cat"])  # it goes on


@pytest.mark.parametrize(("name", "options"), [("narrow", {"width": 400}), ("dark", {"dark": True})])
def test_the_page_is_readable_in_a_narrow_window_and_in_the_dark(demo, three, name, options):
    with open_page(demo, **options) as page:
        page.set_default_timeout(TIMEOUT)
        page.locator("input[type=file]").first.set_input_files(three)
        wait_for_results(page, list(DIGIT_NAMES))
        assert page.evaluate("document.documentElement.scrollWidth") <= options.get("width", 1280)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == (name == "dark")
        save_screenshot(page, f"demo_{name}")


def test_files_that_were_not_uploaded_are_not_served(demo, runs):
    for path in (runs[0] / "result.json", REPOSITORY / "predict.py", Path("/etc/passwd")):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{demo}gradio_api/file={path}")
        assert error.value.code in (403, 404)
        error.value.close()


def test_files_that_were_not_uploaded_are_not_classified(demo, three):
    """A request that does not call a file of the machine one ("meta"), whose path Gradio does not check."""

    def request(path: str, **data: object):
        """Return the answer to a request, which is open until it is read."""
        body = json.dumps(data).encode() if data else None
        return urllib.request.urlopen(urllib.request.Request(demo + path, body, {"Content-Type": "application/json"}))

    with request("config") as answer:
        function = next(f["id"] for f in json.load(answer)["dependencies"] if f["api_name"] == "compare")
    with request(
        "gradio_api/queue/join", data=[{"path": str(three)}, "cup, cat", ""], fn_index=function, session_hash="test"
    ):
        pass
    with request("gradio_api/queue/data?session_hash=test") as answer:
        events = [json.loads(line[5:]) for line in answer if line.startswith(b"data:")]
    output = next(event["output"] for event in events if event["msg"] == "process_completed")
    assert output["error"] == f"{three.name} is no upload"


@pytest.mark.skipif(IS_WINDOWS, reason="Ctrl-C is sent as a signal of POSIX")
def test_without_runs_in_chinese_until_ctrl_c(tmp_path, call, three):
    with start_demo(tmp_path, "--backbone", "tiny", "--lang", "zh") as (process, url):
        with open_page(url) as page:
            page.set_default_timeout(TIMEOUT)
            page.locator("textarea").first.fill("three\neight")
            page.locator("input[type=file]").first.set_input_files(three)
            ((cell,), _) = wait_for_results(page, ["three", "eight"])
            expected = probabilities(call, three, "--backbone", "tiny", "--classes", "three", "eight")
            assert float(cell.rstrip("%")) / 100 == pytest.approx(expected["three"], abs=1e-4)
            save_screenshot(page, "demo_zh")
            page.get_by_role("tab", name="最近的词").click()
            page.wait_for_selector("text=没有学到的上下文")
        result = call("demo", "--backbone", "tiny", "--port", url.rstrip("/").rpartition(":")[2])
        assert result.code == 2
        assert "cannot listen on 127.0.0.1:" in result.error
        assert list(tmp_path.glob("predict_demo_*/*"))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not list(tmp_path.glob("predict_demo_*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", 70_000], "cannot listen on 127.0.0.1:70000"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["{run}", "--backbone", "RN50"], "different CLIPs (RN50, tiny)"),
        (["{run}/absent"], "no run in"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(refused, runs, arguments, message):
    refused("demo", *(str(argument).format(run=runs[0]) for argument in arguments), fragments=[message])


def test_without_gradio_the_message_has_the_install_line(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused("demo", fragments=["predict.py demo needs the package gradio: pip install gradio"])


def test_help_is_printed_without_importing_gradio_and_torch():
    script = "import sys, atexit; atexit.register(lambda: print({'gradio', 'torch'} & set(sys.modules))); "
    script += "import predict; predict.main(['demo', '--help'])"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert "--host" in result.stdout
    assert result.stdout.endswith("set()\n"), result.stderr
