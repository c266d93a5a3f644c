"""The report in a browser: plots, choices, files, a narrow window, dark colours, and no request to elsewhere."""

from __future__ import annotations

import csv

import pytest

from tests.browser import needs_chromium, open_page, save_screenshot, wait_until
from tests.studies.test_report import CLASSES, NAME, SEEDS, write_study, write_study_run
from tools.report import main

pytestmark = needs_chromium
PLOTS = ("shots", "parameters", "classes", "confusion", "reliability", "curves")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study."""
    return write_study(tmp_path_factory.mktemp("report") / "pets")


@pytest.fixture(scope="module")
def report(study):
    """The URL of the study's report."""
    assert main([str(study)]) == 0
    return (study / "report.html").as_uri()


def count_marks(page, plot) -> int:
    """Return the number of drawn marks in a plot: points, lines, bars, and the images of heat maps."""
    return page.locator(f"#plot-{plot} .main-svg").locator(".point, .js-line, .hm image").count()


def get_background(page) -> tuple[int, ...]:
    """Return the red, green and blue of the page's background."""
    return tuple(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))


def test_all_plots_are_drawn_without_a_message_or_a_request(report):
    with open_page(report) as page:
        for plot in PLOTS:
            assert count_marks(page, plot) > 0, plot
        save_screenshot(page, "report")
        tick = page.locator("#plot-classes .xtick text", has_text="script").first
        assert tick.text_content() == CLASSES[1]  # as text, not as an element
        assert page.evaluate("document.querySelectorAll('script').length") == 3
        assert page.locator("h1").count() == 1


def test_choices_change_plots_and_sentences(report):
    with open_page(report) as page:
        before = page.locator("#note-confusion").text_content(), page.locator("#compare-result").text_content()
        page.locator('[data-choices="confusion"] select').first.select_option("CoOp (Standard)")
        page.locator("#compare-first").select_option(label="CoOp (Standard)")
        after = page.locator("#note-confusion").text_content(), page.locator("#compare-result").text_content()
        assert before[0] != after[0]
        assert before[1].startswith(f"The accuracy of {NAME} is higher than that of Zero-shot CLIP: +")
        assert after[1].startswith("The accuracy of CoOp (Standard) is higher than that of Zero-shot CLIP: +")
        page.locator("#compare-second").select_option(label=NAME)
        assert f"CoOp (Standard) is lower than that of {NAME}: " in page.locator("#compare-result").text_content()
        page.locator('[data-choices="reliability"] select').first.select_option("Zero-shot CLIP")
        shots = page.locator('[data-choices="reliability"] select').nth(1)
        assert shots.locator("option").all_text_contents() == ["0 shots"]  # what the method has


def test_the_legend_switches_a_method_off(report):
    with open_page(report) as page:
        points = count_marks(page, "shots")
        page.locator("#plot-shots .legendtoggle").nth(2).click()
        wait_until(page, f"document.querySelectorAll('#plot-shots .point').length < {points}")


def test_buttons_give_files(report, tmp_path):
    with open_page(report) as page:
        files = {}
        for selector in (
            '[data-plot="shots"][data-format="svg"]',
            '[data-plot="classes"][data-format="png"]',
            ".button",
        ):
            for button in page.locator(selector).all():
                with page.expect_download() as download:
                    button.click()
                files[download.value.suggested_filename] = tmp_path / download.value.suggested_filename
                download.value.save_as(files[download.value.suggested_filename])
        assert files.keys() == {"shots.svg", "classes.png", "results.csv", "results.tex"}
        assert "<svg" in files["shots.svg"].read_text(encoding="utf-8")
        assert files["classes.png"].read_bytes().startswith(b"\x89PNG")
        rows = [*csv.reader(files["results.csv"].open(encoding="utf-8-sig", newline=""))]
        assert [row[0] for row in rows] == ["accuracy (%)", "Zero-shot CLIP", NAME, "CoOp (Standard)"]
        assert r"\toprule" in files["results.tex"].read_text(encoding="utf-8")


def test_a_narrow_window_needs_no_horizontal_scrolling(report):
    with open_page(report, width=400) as page:
        page.wait_for_timeout(300)
        save_screenshot(page, "report-narrow")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        widths = page.evaluate("[...document.querySelectorAll('.plot .main-svg')].map(svg => svg.clientWidth)")
        assert max(widths) <= 400


def test_dark_colours_apply_to_the_page_and_its_plots(report):
    with open_page(report, dark=True) as page:
        save_screenshot(page, "report-dark")
        assert max(get_background(page)) < 60
        color = "getComputedStyle(document.querySelector('#plot-shots .main-svg')).backgroundColor.match(/\\d+/g)"
        assert max(map(int, page.evaluate(color)[:3])) < 60
        page.emulate_media(color_scheme="light")
        wait_until(page, f"Math.min(...{color}.slice(0, 3).map(Number)) > 200")
        assert min(get_background(page)) > 200


def test_seeds_appear_for_the_keyboard(report):
    with open_page(report) as page:
        cell = page.locator(".seeds").nth(1)
        assert not cell.locator("[role=tooltip]").is_visible()
        cell.focus()
        assert cell.locator("[role=tooltip]").is_visible()
        text = cell.locator("[role=tooltip]").inner_text()
        assert all(f"seed {seed}: " in text for seed in SEEDS)


def test_the_chinese_page_and_that_of_one_run_have_no_error(study):
    write_study_run(study.parent / "one/CoOp/run", "CoOp", 1, 1, trainable_parameters=None)
    for folder, arguments in ((study, ["--lang", "zh"]), (study.parent / "one", [])):
        assert main([str(folder), *arguments]) == 0
    with open_page((study / "report.zh.html").as_uri()) as page:
        assert count_marks(page, "shots") > 0
        save_screenshot(page, "report-zh")
    with open_page((study.parent / "one/report.html").as_uri()) as page:
        assert "not recorded" in page.locator("#parameters").inner_text()
        assert page.locator("#compare-result").inner_text() == "Choose two methods."


def test_tooltips_have_the_accuracy_of_every_seed_in_sight(report):
    with open_page(report, height=500) as page:
        cell = page.locator("#table .seeds").last
        cell.hover()
        tooltip = cell.locator("[role=tooltip]")
        assert tooltip.inner_text().count("seed") == len(SEEDS)
        box, line = tooltip.bounding_box(), cell.bounding_box()
        assert box["y"] >= line["y"] + line["height"]  # below the cell, and nothing of the table cuts it off
        role = "([x, y]) => document.elementFromPoint(x, y).getAttribute('role')"
        assert page.evaluate(role, [box["x"] + 5, box["y"] + 5]) == "tooltip"


def test_plots_take_the_width_of_paper_in_print(report):
    with open_page(report) as page:
        page.emulate_media(media="print")
        wait_until(page, "document.querySelector('#plot-shots .main-svg').getBoundingClientRect().width === 670")
        page.emulate_media(media="screen")
        wait_until(page, "document.querySelector('#plot-shots .main-svg').getBoundingClientRect().width > 700")
