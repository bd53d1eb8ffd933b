import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from tuning.outcome import Tried
from tuning.picture import ENDED, WHOLE, _draw_course, _draw_parameter, draw_study


@pytest.mark.parametrize("n_trials", [1, 2, 3, 5, 30])
def test_the_axis_of_trials_has_whole_numbers(n_trials):
    axes = Figure().subplots()
    _draw_course(axes, [Tried(number, number - 1, {}, 0.3, True, "") for number in range(1, n_trials + 1)])
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == [round(tick) for tick in ticks] != []


def tell(values, figures, ended=()):
    """Tell of trials of one parameter, of which some were ended early."""
    numbered = enumerate(zip(values, figures, strict=True), start=1)
    return [
        Tried(number, number - 1, {"dim": value}, figure, number not in ended, "")
        for number, (value, figure) in numbered
    ]


def test_the_best_so_far_rises_by_whole_trials_and_the_first_is_what_the_data_chose():
    axes = Figure().subplots()
    _draw_course(axes, tell("abcde", [0.2, 0.9, 0.3, 0.25, 0.4], ended=[2]))
    best, default = axes.get_lines()
    assert best.get_xydata().tolist() == [[1, 0.2], [3, 0.3], [4, 0.3], [5, 0.4]]
    assert set(default.get_ydata()) == {0.2}
    without = Figure().subplots()
    _draw_course(without, tell("abc", [0.2, 0.3, 0.1])[1:])  # the first could not be trained
    assert len(without.get_lines()) == 1


@pytest.mark.parametrize(
    ("values", "places", "scale"),
    [
        (["dot", "cosine", "dot"], [1, 0, 1], "linear"),
        ([64, 16, 32], [2, 0, 1], "linear"),
        ([*range(10, 20)][::-1], [*range(10, 20)][::-1], "linear"),
        ([2.0**power for power in range(9)], [2.0**power for power in range(9)], "log"),
        ([power / 10 for power in range(9)], [power / 10 for power in range(9)], "linear"),
    ],
)
def test_trials_stand_at_their_values(values, places, scale):
    axes, figures = Figure().subplots(), [0.1 * number for number in range(1, len(values) + 1)]
    _draw_parameter(axes, tell(values, figures, ended=[2]), "dim")
    points, first = axes.collections
    assert points.get_offsets().tolist() == [list(map(float, pair)) for pair in zip(places, figures, strict=True)]
    assert first.get_offsets().tolist() == [[places[0], figures[0]]]
    assert axes.get_xscale() == scale
    colours = [tuple(colour) for colour in points.get_facecolors()]
    assert colours == [to_rgba(ENDED if place == 1 else WHOLE) for place in range(len(values))]


def test_a_trial_without_a_figure_is_not_drawn():
    tried = tell([8, 16], [0.2, 0.3])
    lost = Tried(3, 2, {"dim": 32}, None, False, "the loss is nan")
    assert draw_study([*tried, lost]) == draw_study(tried)
