"""Words and numbers for people: names of models, views and metrics, and how figures are written."""

from __future__ import annotations

import calendar
from datetime import datetime

from evaluation.evaluate import MODEL
from serve.zones import find_zone

PRODUCT = "Bascule"
MODELS = {
    MODEL: PRODUCT,
    "popularity": "Most popular",
    "popularity-recent": "Recently popular",
    "personal": "Own most frequent",
    "personal-decayed": "Own, recent first",
    "itemknn": "ItemKNN",
    "ease": "EASE",
}
EXPLAINED_MODELS = {
    "popularity": "the same list for everybody: what most events were on",
    "popularity-recent": "the same list for everybody: what most events of the last days were on",
    "personal": "what the user had most often before, then what is popular",
    "personal-decayed": "what the user had most often before, recent times counting more",
    "itemknn": "items that go with those the user had, by how often they come together",
    "ease": "a linear model of which items go together, Steck 2019",
}
VIEWS = {"all": "All items", "repeat": "Items the user had before", "novel": "Items new to the user"}
METRICS = {
    "HR": "share of users with at least one right item among the first k",
    "Recall": "share of the right items found among the first k",
    "NDCG": "as Recall, but higher places count more; 1 is a perfect list, 0 has nothing right",
    "MRR": "1 / place of the first right item",
    "MAP": "mean precision at the places of the right items",
}
BEYOND = {
    "coverage": ("Coverage", "share of the catalogue that stands in at least one list"),
    "novelty": ("Novelty", "bits of surprise of an item shown: higher is less known"),
    "popularity_lift": ("Popularity lift", "popularity of what is shown over that of what users chose"),
    "gini": ("Gini", "0: all items shown equally often; near 1: a few have it all"),
}
SLICES = {
    "history": "Events in the user's history",
    "item_events": "Events of the right item in training",
    "popularity": "Popularity of the right item",
}
"""Slices that every evaluation has; all others are columns of the users table."""


def name_model(name: str) -> str:
    """Return the name that people read; a baseline of no known name keeps its own."""
    return MODELS.get(name, name)


def figure(value: float) -> str:
    """Write a metric with four digits and a true minus sign."""
    return f"{value:.4f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def count(value: float) -> str:
    """Write a number of things."""
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Write a share of 0 to 1; None, where there is nothing to share, is a dash."""
    return "–" if share is None else f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def plain(value: float) -> str:
    """Write a number as short as three digits after the point allow."""
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def amount(number: int, noun: str) -> str:
    """Write a count with its noun, in the plural where it is not one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds, the two largest that are not 0."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def say_day(moment: str, timezone: str | None) -> str:
    """Write the date of an ISO moment as people in a time zone say it."""
    day = datetime.fromisoformat(moment).astimezone(find_zone(timezone))
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def say_moment(moment: str | None) -> str:
    """Write an ISO moment in UTC so that it can be read, and broken into lines."""
    return "" if moment is None else moment.replace("T", " ").replace("Z", " UTC")


def third_digit(value: float) -> str:
    """Write a number with three digits after the point, so that a column of them lines up."""
    return f"{value:,.3f}".replace("-", "−")
