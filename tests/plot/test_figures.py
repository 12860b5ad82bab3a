"""What holds of every figure: odd sweeps, files, no global state, threads."""

import concurrent.futures
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from driftlab import plot

FIGURES = [plot.final_value, plot.curves, plot.heat_map]


ODD_SWEEPS = [
    "one learning rate, one seed",
    "one lane that diverges",
    "no seed axis",
    "one record",
    "all diverged",
    "all diverged at once",
    "nothing run",
    "one of two run",
    "negative values",
    "zero values",
    "negative axis",
    "integer axis",
    "many integers",
    "seed as the axis",
    "one record, at 0, of the survivors",
]


@pytest.fixture
def odd_sweeps(make_sweep):
    """Name -> (dataset, axis)."""
    one = {"learning_rate": [0.1], "seed": [0]}
    rates, seeds = np.geomspace(0.01, 1, 3), [0, 1]
    two = {"learning_rate": rates, "seed": seeds}
    noise = np.random.default_rng(0).normal(size=(3, 2, 4))
    missing = make_sweep(np.full((3, 2, 4), np.nan))
    missing["verdict"][:] = "missing"
    unrun = {"optimizer": ["sgd", "adam"], **two}
    half = make_sweep(np.ones((2, 3, 2, 4)), np.full((2, 3, 2), -1), unrun)
    half["verdict"] = half.verdict.astype("<U9")
    half["verdict"][1], half["loss"][1] = "missing", np.nan
    return {
        "one learning rate, one seed": (make_sweep(np.ones((1, 1, 4)), axes=one), "learning_rate"),
        "one lane that diverges": (make_sweep(np.ones((1, 1, 4)), [[15]], one), "learning_rate"),
        "no seed axis": (
            make_sweep(np.ones((3, 4)), axes={"learning_rate": rates}),
            "learning_rate",
        ),
        "one record": (make_sweep(np.ones((3, 2, 1)), axes=two), "learning_rate"),
        "all diverged": (make_sweep(np.ones((3, 2, 4)), np.full((3, 2), 15)), "learning_rate"),
        "all diverged at once": (
            make_sweep(np.ones((3, 2, 4)), np.zeros((3, 2), int)),
            "learning_rate",
        ),
        "nothing run": (missing, "learning_rate"),
        "one of two run": (half, "learning_rate"),
        "negative values": (make_sweep(noise), "learning_rate"),
        "zero values": (make_sweep(np.zeros((3, 2, 4))), "learning_rate"),
        "negative axis": (
            make_sweep(noise, axes={"offset": [-1.0, 0.0, 2.0], "seed": seeds}),
            "offset",
        ),
        "integer axis": (make_sweep(noise, axes={"width": [16, 32, 64], "seed": seeds}), "width"),
        "many integers": (make_sweep(np.ones((9, 4)), axes={"depth": np.arange(1, 10)}), "depth"),
        "seed as the axis": (make_sweep(noise, axes=two), "seed"),
        "one record, at 0, of the survivors": (
            make_sweep(np.where(np.arange(4) > 0, np.nan, np.ones((3, 2, 4)))),
            "learning_rate",
        ),
    }


@pytest.mark.parametrize("function", FIGURES)
@pytest.mark.parametrize("name", ODD_SWEEPS)
def test_odd_sweeps_are_drawn(function, name, odd_sweeps):
    dataset, axis = odd_sweeps[name]
    figure = function(dataset, "loss", axis)
    assert isinstance(figure, Figure)
    figure.canvas.draw()


@pytest.mark.parametrize("name", ["all diverged", "all diverged at once"])
def test_a_figure_without_a_final_value_says_why(name, odd_sweeps):
    dataset, axis = odd_sweeps[name]
    panel, strip = plot.final_value(dataset, "loss", axis).axes
    assert [text.get_text() for text in panel.texts] == ["every lane diverged"]
    np.testing.assert_array_equal(strip.collections[0].get_array(), [[1, 1, 1]])
    panel = plot.final_value(odd_sweeps["nothing run"][0], "loss").axes[0]
    assert [text.get_text() for text in panel.texts] == ["no value"]


def test_few_values_are_the_ticks(odd_sweeps):
    dataset, axis = odd_sweeps["integer axis"]
    figure = plot.final_value(dataset, "loss", axis)
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["16", "32", "64"]
    assert panel.get_xscale() == "log"


def test_many_integers_have_integer_ticks(odd_sweeps):
    dataset, axis = odd_sweeps["many integers"]
    panel = plot.final_value(dataset, "loss", axis).axes[0]
    assert panel.get_xscale() == "linear"
    assert all(float(tick).is_integer() for tick in panel.get_xticks())


@pytest.mark.parametrize("function", FIGURES)
def test_unknown_names_are_refused(function, sweep):
    with pytest.raises(ValueError, match="did you mean 'loss'"):
        function(sweep, "lloss")
    with pytest.raises(ValueError, match="axis 'momentum' is not an axis.*learning_rate, seed"):
        function(sweep, "loss", "momentum")


def test_nothing_overlaps_in_a_drawn_figure(sweep):
    for function in FIGURES:
        figure = function(sweep, "loss", title="a title")
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        for panel in figure.axes:
            assert not box.overlaps(panel.get_tightbbox())
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0


def test_settings_and_pyplot_are_left_alone(sweep):
    before = dict(matplotlib.rcParams)
    for function in FIGURES:
        function(sweep, "loss")
    with pytest.raises(ValueError):
        plot.curves(sweep, "nothing")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_imported():
    code = "import sys, driftlab.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_draw_the_same(sweep, tmp_path):
    def draw(index):
        return plot.save(plot.heat_map(sweep, "loss"), tmp_path / f"{index}.png").read_bytes()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        files = list(pool.map(draw, range(4)))
    assert len(set(files)) == 1


def test_save_writes_a_png_and_nothing_else(sweep, tmp_path):
    figure = plot.curves(sweep, "loss")
    path = plot.save(figure, str(tmp_path / "figures" / "curves.png"))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]
    width, height = np.frombuffer(path.read_bytes()[16:24], ">u4")
    np.testing.assert_allclose([width, height], figure.get_size_inches() * 150, atol=1)


def test_save_keeps_the_old_file_where_drawing_fails(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    class Broken(Figure):
        def savefig(self, fname, **kwargs):
            with open(fname, "wb") as file:
                file.write(b"half")
            raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        plot.save(Broken(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ValueError, match="must end in '.png'"):
        plot.save(Figure(), tmp_path / "figure.pdf")
