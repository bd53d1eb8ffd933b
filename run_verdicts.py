"""What the validation decided on what is added to trained towers, in words."""

from __future__ import annotations

from models.blending import Judged
from models.low_pass import LowPass
from models.pair_filter import PairFilter
from models.popularity import Popularity
from models.shrinkage import Shrunk


def describe_blend(judged: Judged) -> str:
    """Say in words what was chosen."""
    if not judged.blend.share:
        return f"correlations of items blended in: none, validation NDCG@10 {judged.ndcg_alone:.4f} is best without"
    blend = judged.blend
    how = f", of {blend.n_neighbours} neighbours each," if blend.n_neighbours else ""
    share = f"{blend.kind} of items{how} blended in by {blend.share * 100:g}%"
    if judged.ndcg is None:
        return f"{share}, as is usual: there is nothing to validate it by"
    return f"{share}: validation NDCG@10 {judged.ndcg_alone:.4f} without, {judged.ndcg:.4f} with them"


def describe_shrinkage(shrunk: Shrunk) -> str:
    """Say in words how far items are shrunk."""
    if not shrunk.strength:
        why = f"validation NDCG@10 {shrunk.ndcg_alone:.4f} without, hardly more or less with it"
        return f"items shrunk towards their content: not at all, {why}"
    how = f"items shrunk towards their content, worth {shrunk.strength:g} event{'s' * (shrunk.strength != 1)}"
    if shrunk.ndcg is None:
        return f"{how}, as is usual: there is nothing to validate it by"
    return f"{how}: validation NDCG@10 {shrunk.ndcg_alone:.4f} without, {shrunk.ndcg:.4f} with it"


def describe_low_pass(chosen: LowPass) -> str:
    """Say in words what was chosen."""
    how = f" of {chosen.factors} factor{'s' * (chosen.factors != 1)} added by {chosen.share:.1%}"
    return _describe_added(chosen, "low-pass filter", how)


def describe_pair_filter(judged: PairFilter) -> str:
    """Say in words what was chosen."""
    return _describe_added(judged, "filter of pairs", f" added by {judged.share:.1%}")


def describe_popularity(popular: Popularity, days: float | None) -> str:
    """Say in words what was chosen; days: of the window, None where events have no times."""
    return _describe_added(popular, "popularity", f" of {_describe_window(days)} added by {popular.share:.0%}")


def _describe_window(days: float | None) -> str:
    if days is None:
        return "all events"
    length = f"{days:.3g}" if days < 100 else f"{days:,.0f}"  # "1.07e+03" is no number of days
    return f"{length} day{'s' * (length != '1')}"


def _describe_added(judged: LowPass | PairFilter | Popularity, what: str, how: str) -> str:
    if judged.ndcg is None:
        return f"{what} added: none, there is nothing to validate it by"
    if not judged.share:
        return f"{what} added: none, validation NDCG@10 {judged.ndcg_alone:.4f} without, hardly more with it"
    return f"{what}{how}: validation NDCG@10 {judged.ndcg_alone:.4f} without, {judged.ndcg:.4f} with it"
