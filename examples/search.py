"""Search for better values of the model with Optuna, each judged by events before the test.

The last month is the test and is never looked at: every trial trains on what was before it and
measures itself there. The best of many is judged by the events that chose it, so expect less of it
on the test. `storage="sqlite:///study.db"` in `create_study` keeps a study that is interrupted.
"""

from __future__ import annotations

import optuna
import pandas as pd
from from_dataframe import make_tables
from optuna.trial import Trial

import bascule

N_TRIALS = 3  # some dozens where a training takes minutes
TEST_SHARE = 0.1


def judge(trial: Trial, past: pd.DataFrame) -> float:
    """Train with drawn values and return NDCG@10 of new items at the end of the past."""
    recommender = bascule.fit(
        past,
        dim=trial.suggest_categorical("dim", [32, 64, 128]),
        learning_rate=trial.suggest_float("learning_rate", 5e-4, 5e-3, log=True),
        baselines=[],
        quiet=True,
    )
    return float(recommender.metrics["test"]["bascule"]["novel"]["NDCG@10"])


def main() -> None:
    """Search on the past, then train on it and measure by the test."""
    events, _ = make_tables()
    events = events.sort_values("datetime", kind="stable")
    n_past = int(len(events) * (1 - TEST_SHARE))
    past, test = events.iloc[:n_past], events.iloc[n_past:]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
    )
    study.optimize(lambda trial: judge(trial, past), N_TRIALS)
    print(f"best of {N_TRIALS}: {study.best_params}, NDCG@10 {study.best_value:.4f}")

    recommender = bascule.fit(past, **study.best_params, baselines=[], quiet=True)
    figures = recommender.evaluate(test, past)
    print(f"on the test: NDCG@10 {figures['test']['bascule']['novel']['NDCG@10']:.4f}")


if __name__ == "__main__":
    main()
