"""What a floor of people behind item-item weights costs: validation NDCG by `model.min_users`.

python tests/benchmarks/people_floor.py --floors 1 2 3 5 -- --config my.yaml --quick

The towers are trained once, on the training rows; the refinement is chosen anew for each floor.
Printed are the NDCG of the validation, that of the towers alone, and how many weights stand.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.refine import apply, choose
from pipeline.config import parse
from pipeline.stages import fit_first, limit
from pipeline.tables import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floors", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--requests", type=int, default=4096, help="of the validation")
    options, words = parser.parse_known_args()
    words = [word for word in words if word != "--"]
    with TemporaryDirectory() as folder:
        config, _ = parse([*words, "--out", f"{folder}/run"])
        work = prepare(config, None, Path(folder))
        first = fit_first(work)
        print(f"{len(first.data.catalogue):,} items, {len(first.data.sequences.user_ids):,} users")
        base = None
        for floor in options.floors:
            limits = limit(work)
            n_requests = min(limits.n_requests, options.requests)
            limits = replace(limits, min_users=floor, n_requests=n_requests)
            chosen = choose(first.towers, first.data, limits, config.seed)
            base = base or chosen.ndcg
            nothing = first.towers.neighbours
            apply(
                replace(chosen, content_events=0.0), first.towers, first.data, limits, config.seed
            )
            n_weights = first.towers.neighbours.offsets[-1]
            first.towers.neighbours = nothing
            print(
                f"floor {floor}: NDCG {chosen.ndcg:.5f} ({chosen.ndcg / base - 1:+.1%}), "
                f"towers alone {chosen.ndcg_before:.5f}, {n_weights:,} weights, "
                f"{dict(chosen.alphas)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
