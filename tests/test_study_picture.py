import pytest
from matplotlib.figure import Figure

from tuning.outcome import Tried
from tuning.picture import _draw_course


@pytest.mark.parametrize("n_trials", [1, 2, 3, 5, 30])
def test_the_axis_of_trials_has_whole_numbers(n_trials):
    axes = Figure().subplots()
    _draw_course(axes, [Tried(number, number - 1, {}, 0.3, True, "") for number in range(1, n_trials + 1)])
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == [round(tick) for tick in ticks] != []
