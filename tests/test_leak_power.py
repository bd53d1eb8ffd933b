from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.clean import TARGET_WEIGHT
from datamodules.config import FeatureConfig
from datamodules.leaks import power
from datamodules.leaks.codes import MISSING, MOST_VALUES, code_cells, cut_numbers, list_tokens, rank_numbers
from datamodules.leaks.power import count_pairs, guess_items, measure_fact, measure_number_fact, tell_targets
from datamodules.leaks.sample import MOST_ROWS_PER_USER, draw_sample
from datamodules.splits import Split

USERS, ITEMS, EVENTS = 13, 7, 11


def split_of(events):
    return Split(events, events.head(0), events.head(0), "none")


@pytest.fixture
def sample(monkeypatch):
    """143 events at different moments, and no lower limit of rows."""
    monkeypatch.setattr(power, "MIN_DECISIVE", 1)
    monkeypatch.setattr(power, "MIN_OF_EACH", 1)
    rng = np.random.default_rng(0)
    n = USERS * EVENTS
    events = pd.DataFrame({"user_id": np.repeat(np.arange(USERS), EVENTS), "datetime": rng.permutation(n) + 10**9})
    events["item_id"] = rng.integers(0, ITEMS, n)
    events["word"] = np.where(rng.random(n) < 0.3, None, np.array(["a", "b", "c"])[events["item_id"] % 3])
    events.loc[rng.random(n) < 0.2, "word"] = "b"
    events["number"] = np.where(rng.random(n) < 0.2, np.nan, events["item_id"] // 2 + rng.normal(size=n))
    return draw_sample(split_of(events))


def naive_neighbours(sample, by_user):
    """List (row, other) of rows that are next to each other in time, in both directions, with different items."""
    times = sample.rows["datetime"].to_numpy()
    order = sorted(range(len(times)), key=lambda row: (sample.user[row] if by_user else 0, times[row]))
    pairs = pairwise(order)
    kept = [
        (a, b)
        for a, b in pairs
        if sample.item[a] != sample.item[b] and (not by_user or sample.user[a] == sample.user[b])
    ]
    return kept + [(b, a) for a, b in kept]


def naive_power(sample, values, guess, loss):
    """One minus own loss by neighbours' loss, the lesser of the two kinds of neighbours."""
    powers = []
    for by_user in (True, False):
        own = other = 0.0
        for row, beside in naive_neighbours(sample, by_user):
            known = values[row] is not None and values[beside] is not None
            if not sample.is_learnt[row] and known and sample.item[row] in guess:
                own += loss(values[row], guess[sample.item[row]])
                other += loss(values[beside], guess[sample.item[row]])
        powers.append(1 - own / other)
    return min(powers)


def test_the_share_of_a_word_that_the_item_tells_is_that_of_a_naive_count(sample):
    words = [None if pd.isna(word) else word for word in sample.rows["word"]]
    counts = defaultdict(Counter)
    codes = code_cells(sample.rows["word"])
    for item, word, code, learnt in zip(sample.item, words, codes, sample.is_learnt, strict=True):
        if learnt and word is not None:
            counts[item][word] += 1 - code * 1e-6  # equally frequent ones by code
    guess = {item: words.most_common(1)[0][0] for item, words in counts.items()}
    expected = naive_power(sample, words, guess, lambda value, guessed: value != guessed)
    assert 0.1 < expected < 0.95
    assert measure_fact(sample, codes) == pytest.approx(expected)


def test_words_that_come_once_are_not_told_by_an_item_that_has_them_in_a_measured_row(sample):
    words = np.arange(len(sample.item))
    guess: dict[int, int] = {}
    for item, word, learnt in zip(sample.item, words, sample.is_learnt, strict=True):
        if learnt:
            guess.setdefault(item, word)  # the first of those that come once
    expected = naive_power(sample, words, guess, lambda value, guessed: value != guessed)
    assert measure_fact(sample, words) == pytest.approx(expected)


def test_the_share_of_a_number_that_the_item_tells_is_that_of_a_naive_count(sample):
    numbers = sample.rows["number"]
    ranks = (numbers.rank() - 0.5) / numbers.notna().sum()
    values = [None if np.isnan(rank) else rank for rank in ranks]
    guess = {item: ranks[(sample.item == item) & sample.is_learnt].mean() for item in range(ITEMS)}
    expected = naive_power(sample, values, guess, lambda value, guessed: (value - guessed) ** 2)
    assert 0.1 < expected < 0.95
    assert measure_number_fact(sample, numbers.to_numpy()) == pytest.approx(expected)


def test_guesses_of_items_are_those_of_a_naive_count(sample, monkeypatch):
    monkeypatch.setattr(power, "LIST_LENGTH", 3)
    codes = code_cells(sample.rows["word"])
    known = [row for row in range(len(codes)) if codes[row] != MISSING]
    learnt = [row for row in known if sample.is_learnt[row]]
    measured = [row for row in known if not sample.is_learnt[row]]

    def top(rows):
        counts = Counter(int(sample.item[row]) for row in rows)
        return sorted(counts, key=lambda item: (-counts[item], item))[:3]

    popular = top(learnt)
    lists = [top([row for row in learnt if codes[row] == codes[one]]) for one in measured]
    items = [int(sample.item[row]) for row in measured]
    guesses = guess_items(sample, codes)
    pairs = list(zip(items, lists, strict=True))
    assert guesses.first == pytest.approx(np.mean([item == ranked[0] for item, ranked in pairs]))
    assert guesses.within_ten == pytest.approx(np.mean([item in ranked for item, ranked in pairs]))
    assert guesses.popular_first == pytest.approx(np.mean([item == popular[0] for item in items]))
    assert guesses.popular_within_ten == pytest.approx(np.mean([item in popular for item in items]))


def test_a_value_that_nobody_else_has_is_worth_what_popularity_is(sample):
    guesses = guess_items(sample, np.arange(len(sample.item)))
    assert (guesses.first, guesses.within_ten) == (guesses.popular_first, guesses.popular_within_ten)
    assert (guesses.power, guesses.exclusive) == (0.0, 0.0)
    assert guess_items(sample, sample.item).exclusive == 1.0


@pytest.mark.parametrize(("often", "seldom"), [(0.8, 0.3), (0.4, 0.02), (0.98, 0.6)])
def test_targets_are_told_as_by_a_naive_count(sample, often, seldom):
    rng = np.random.default_rng(1)
    codes = code_cells(sample.rows["word"])
    is_target = rng.random(len(codes)) < np.where(codes == 0, often, seldom)
    learnt = sample.is_learnt
    usual = is_target[learnt].mean()
    called = {code for code in set(codes) if is_target[learnt & (codes == code)].mean() > usual}
    is_called = np.array([code in called for code in codes])
    telling = tell_targets(sample, codes, is_target)
    assert telling.found == pytest.approx(is_called[~learnt & is_target].mean())
    assert telling.mistaken == pytest.approx(is_called[~learnt & ~is_target].mean())
    assert telling.power == pytest.approx(telling.found - telling.mistaken)


def test_a_column_of_the_user_or_of_the_moment_is_no_fact_of_the_item(sample):
    assert measure_fact(sample, sample.user.astype(np.int64)) <= 0
    moment = sample.rows["datetime"].rank().to_numpy()
    assert measure_number_fact(sample, moment) < 0.1
    assert measure_fact(sample, sample.item.astype(np.int64)) == 1.0


def test_evidence_is_no_target():
    events = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [3, 4, 3, 5], TARGET_WEIGHT: [0.0, 2.0, 0.5, 0.0]})
    drawn = draw_sample(split_of(events))
    assert drawn.is_target.tolist() == (drawn.rows[TARGET_WEIGHT] > 0).tolist()
    assert drawn.is_target.sum() == 2
    assert draw_sample(split_of(events.drop(columns=TARGET_WEIGHT))).is_target is None


def test_a_robot_is_cut_and_users_stay_whole():
    n = MOST_ROWS_PER_USER + 17
    events = pd.DataFrame(
        {"user_id": [1] * n + [2] * 5, "item_id": np.arange(n + 5) % 23, "datetime": np.arange(n + 5)}
    )
    rows = draw_sample(split_of(events.sample(frac=1, random_state=0))).rows
    assert rows["user_id"].value_counts().to_dict() == {1: MOST_ROWS_PER_USER, 2: 5}
    assert rows.loc[rows["user_id"] == 1, "datetime"].max() == MOST_ROWS_PER_USER - 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_pairs_are_counted_as_a_counter_does(pairs):
    counted = count_pairs(*np.array(pairs, np.int64).T)
    expected = sorted(Counter(pairs).items(), key=lambda entry: (entry[0][0], -entry[1], entry[0][1]))
    got = [
        ((int(left), int(right)), int(count))
        for left, right, count in zip(counted.left, counted.right, counted.count, strict=True)
    ]
    assert got == expected
    ranks = [sum(other[0][0] == pair[0][0] for other in expected[:place]) for place, pair in enumerate(expected)]
    assert counted.rank.tolist() == ranks
    absent = counted.find_rank(np.array([0, 4]), np.array([7, 8]))
    assert (absent >= len(expected)).all()
    assert counted.find_rank(counted.left, counted.right).tolist() == ranks


@given(st.lists(st.one_of(st.none(), st.floats(-9, 9), st.integers(-3, 3)), max_size=90))
@settings(max_examples=40, deadline=None)
def test_numbers_are_ranked_and_cut_in_order(numbers):
    values = np.array([np.nan if number is None else number for number in numbers], float)
    known = ~np.isnan(values)
    expected = (pd.Series(values).rank() - 0.5) / max(known.sum(), 1)
    np.testing.assert_allclose(rank_numbers(values), expected)
    cut = cut_numbers(values)
    assert (cut[~known] == MISSING).all()
    assert ((cut[known] >= 0) & (cut[known] < max(MOST_VALUES, 1))).all()
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(cut[known][order]) >= 0).all()


def test_cells_of_every_kind_are_coded():
    cells = pd.Series(["a", " ", None, "b", "a"], dtype="str")
    assert code_cells(cells).tolist() == [0, MISSING, MISSING, 2, 0]
    lists = pd.Series([np.array([1.0, 2.0]), [3], (1.0, 2.0), None, "x"], dtype=object)
    assert code_cells(lists).tolist() == [0, 1, 0, MISSING, 2]
    assert code_cells(pd.Series([2.5, np.nan, 2.5])).tolist() == [0, MISSING, 0]


def test_tokens_are_written_as_vocabularies_write_them():
    ids = pd.Series([4, 5, 6])
    several = list_tokens(ids, pd.Series(["a| b|a", None, ["c", "a|d"]]), FeatureConfig("multi_categorical"))
    assert list(several.itertuples(index=False, name=None)) == [(4, "a"), (4, "b"), (6, "c"), (6, "a"), (6, "d")]
    one = list_tokens(ids, pd.Series([7.0, np.nan, 8.5]), FeatureConfig("numeric"))
    assert list(one.itertuples(index=False, name=None)) == [(4, "7"), (6, "8.5")]
