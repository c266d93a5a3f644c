"""The plots of a study: where its methods stand, what the axes, titles and legends say."""

from itertools import combinations

import numpy as np
import pytest

from studies.tables.plots import choose_styles
from studies.tables.study import GROUPS
from tests.studies.records import write_run
from tools.results_table import main

GROUP_NAMES = [*GROUPS]


@pytest.fixture
def draw(tmp_path, figures):
    """Return a function that writes the table of ``folder`` and returns the figures of shots and of parameters."""

    def draw_plots(folder="digits") -> list:
        figures.clear()
        assert main([str(tmp_path / folder)]) == 0
        for figure in figures:
            figure.draw_without_rendering()
        return figures

    return draw_plots


def write_method(folder, name, group="features", shots=(1, 16), seeds=(1, 2), parameters=512, **record):
    """Write the runs of a method, whose accuracy differs between seeds."""
    for number in shots:
        for seed in seeds:
            run = {"trainer": name, "method": name, "group": group, "shots": number, "seed": seed, **record}
            accuracy = 70 + seed + len(name)
            write_run(folder / f"{name}/{number}/{seed}", accuracy, **run, trainable_parameters=parameters)


def write_zero_shot(folder):
    """Write a run of zero-shot CLIP."""
    write_run(folder / "zero", 70, trainer="ZeroshotCLIP", shots=0, method="Zero-shot CLIP", group="training-free")


def find_bars(axes) -> list:
    """Return the boxes, in pixels, of all intervals in ``axes``."""
    segments = [s for c in axes.containers for bars in c.lines[2] for s in bars.get_segments()]
    return [axes.transData.transform(segment) for segment in segments if np.isfinite(segment).all()]


def test_intervals_stand_side_by_side_and_legends_outside(tmp_path, draw):
    folder = tmp_path / "digits"
    write_zero_shot(folder)
    for number, parameters in enumerate((0, 0, 512, 512, 640, 650, 2048, 66560)):
        write_method(folder, f"method{number}", GROUP_NAMES[number % 4], parameters=parameters)
    figures = draw()
    assert len(figures) == 2
    for figure, count in zip(figures, (16, 8), strict=True):
        (axes,) = figure.axes
        bars = find_bars(axes)
        assert len(bars) == count
        for one, other in combinations(bars, 2):
            assert abs(one[0, 0] - other[0, 0]) > 6, "a marker's width"
        legend = figure.legends[0].get_window_extent()
        assert not legend.overlaps(axes.get_window_extent())
        assert not legend.overlaps(figure._suptitle.get_window_extent())


@pytest.mark.parametrize("methods", [8, 9])
def test_of_many_methods_each_group_has_a_plot(tmp_path, draw, methods):
    write_zero_shot(tmp_path / "digits")
    for number in range(methods):
        write_method(tmp_path / "digits", f"method{number}", GROUP_NAMES[1 + number // 4], (1,), (1,))
    figure = draw()[0]
    titles = ["features", "prompts", "towers"] if methods == 9 else [""]
    assert [axes.get_title("left") for axes in figure.axes] == titles
    for axes in figure.axes:
        assert 70 in [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        names = [name for name in axes.get_legend_handles_labels()[1] if name.startswith("method")]
        assert len(names) == (8 if methods == 8 else 1 if axes.get_title("left") == "towers" else 4)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    names = [f"method{number}" for number in range(methods)]
    heads = [(0, "features"), (4, "prompts"), (8, "towers")]
    expected = ["training-free", "Zero-shot CLIP (70.00%)"]
    expected += [text for i, name in enumerate(names) for text in (*(head for at, head in heads if at == i), name)]
    assert labels == expected


def test_axes_have_the_shots_and_nothing_between_them(tmp_path, draw):
    write_zero_shot(tmp_path / "digits")
    write_method(tmp_path / "digits", "A", shots=(1, 3, 16, -1))
    (axes,) = draw()[0].axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "3", "16", "all"]
    assert [*axes.get_xticks()] == [0, 1, 2, 3, 4]
    assert not len(axes.get_xticks(minor=True))
    (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [*curve.get_xdata()] == [1, 2, 3]  # not to "all"


def test_parameters_have_a_place_for_zero_and_a_logarithmic_axis_from_the_fewest_on(tmp_path, draw):
    write_zero_shot(tmp_path / "digits")
    for name, parameters in (("A", 512), ("BB", 2048), ("C", 8192)):
        write_method(tmp_path / "digits", name, parameters=parameters)
    figure = draw()[1]
    (axes,) = figure.axes
    ticks = dict(zip((text.get_text() for text in axes.get_xticklabels()), axes.get_xticks(), strict=True))
    assert list(ticks) == ["1,000", "2,000", "5,000", "0"]
    places = [container.lines[0].get_xdata()[0] for container in axes.containers if len(container.lines[0].get_xdata())]
    assert places == pytest.approx([ticks["0"], *np.log10([512, 2048, 8192])])
    (end,) = [text.get_position()[0] for text in axes.texts if text.get_text() == "//"]
    assert places[0] < end < places[1]
    front = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    x, y = front.get_data()
    assert [*x] == pytest.approx([places[0], places[1], places[2], places[3]])
    assert [*y] == [70, 72.5, 73.5, 73.5]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "Pareto front",
        "training-free",
        "Zero-shot CLIP, 0",
        "features",
        "A, 512",
        "BB, 2,048",
        "C, 8,192",
    ]
    write_method(tmp_path / "free", "A", parameters=0)
    write_method(tmp_path / "free", "B", parameters=0)
    assert [text.get_text() for text in draw("free")[1].axes[0].get_xticklabels()][-1] == "0"


def test_titles_say_what_was_run(tmp_path, draw):
    folder = tmp_path / "digits"
    write_method(folder, "A", seeds=(1, 2))
    write_method(folder, "B", seeds=(1, 2), shots=(16,))
    shots, parameters = (figure.get_suptitle() for figure in draw())
    line = "backbone RN50 · Digits · 2 classes · 1,000 test images · seeds 1, 2 · bars: 95% intervals"
    assert shots == f"Few-shot accuracy on digits\n{line}"
    assert parameters == f"Few-shot accuracy on digits, 16 shots\n{line}"
    other = {"weights": {"backbone": "ViT-B/16"}, "dataset": "MNIST", "total": 999, "classnames": ["a", "b", "c"]}
    write_method(folder, "C", seeds=(3,), **other)
    title = " ".join(draw()[0].get_suptitle().split())
    assert "several backbones · several data sets · several sets of classes · several sets of test images" in title
    assert "several sets of seeds" in title


def test_without_several_seeds_no_interval_is_drawn_or_named(tmp_path, draw):
    write_method(tmp_path / "digits", "A", seeds=(1,))
    (figure,) = draw()
    assert figure.get_suptitle().endswith("1,000 test images · seed 1")
    assert not find_bars(figure.axes[0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A"]  # no header for one group


def test_no_axis_shows_accuracies_that_there_are_not_and_chance_is_shown_if_near(tmp_path, draw):
    for accuracy, seed in ((20, 1), (99, 2)):
        write_run(tmp_path / "digits" / str(seed), accuracy, seed=seed)
    (figure,) = draw()
    low, high = figure.axes[0].get_ylim()
    assert -2 <= low <= 0 < 100 <= high <= 102
    assert "bars: 95% intervals (cut at 0% and 100%)" in " ".join(figure.get_suptitle().split())
    assert "chance (50.00%)" in [text.get_text() for text in figure.legends[0].get_texts()]
    write_method(tmp_path / "above", "A")
    assert "chance" not in str([text.get_text() for text in draw("above")[0].legends[0].get_texts()])


def test_styles_are_told_apart_in_gray_and_shades_of_one_colour_in_each_group():
    styles = choose_styles({f"method{number}": GROUP_NAMES[number // 6] for number in range(24)})
    shapes = {tuple(sorted((k, v) for k, v in style.items() if k != "color")) for style in styles.values()}
    assert len(shapes) == 24
    assert len({tuple(style["color"]) for style in styles.values()}) == 24
    features = [styles[f"method{number}"]["color"] for number in range(6, 12)]
    assert all(red > green > blue for red, green, blue, _ in features), GROUPS["features"]
