r"""Does `evaluate --general offline` rank models as IFEval does?

    python benchmarks/offline_suite.py RUN --ifeval prompts.jsonl --items FILE

The models are the base of an adapter and the adapter at scales from little to too much. All of them answer both suites
(`selfaug evaluate`'s own parts; what is finished is kept in RUN/evaluation, and the call goes on there). The figure is
Spearman's correlation of the suites' scores over the models, with an interval from drawing both suites' items anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from measure import quiet, table
from numpy.typing import NDArray
from scale_adapters import measured, subject
from scipy.stats import spearmanr  # type: ignore[import-untyped,unused-ignore]

PARTS = ("general:offline_following", "general:ifeval")
METRICS = ("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc")
SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
_DRAWS = 2_000


def values(found: Mapping[str, Any], part: str, metric: str) -> NDArray[np.float64]:
    """Sums and counts of a metric of every item: [models, items, 2], the base first."""
    first = next(iter(found.values()))
    rows = [[sample["base"]["values"][metric] for sample in first[part]["samples"]]]
    rows += [[sample["tuned"]["values"][metric] for sample in body[part]["samples"]] for body in found.values()]
    return np.array([[one if isinstance(one, list) else [one, 1.0] for one in row] for row in rows])


def correlation(of_MI2: NDArray[np.float64], other_MI2: NDArray[np.float64]) -> tuple[float, float, float]:
    """Spearman's correlation of two suites' scores over the models, and its 95 % interval over the items drawn."""

    def score(sums_MI2: NDArray[np.float64]) -> NDArray[np.float64]:
        total_M2 = sums_MI2.sum(axis=1)
        return np.asarray(total_M2[:, 0] / total_M2[:, 1])

    rng, drawn = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        both = [each[:, rng.integers(each.shape[1], size=each.shape[1])] for each in (of_MI2, other_MI2)]
        drawn.append(spearmanr(score(both[0]), score(both[1])).statistic)
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(spearmanr(score(of_MI2), score(other_MI2)).statistic), float(low), float(high)


def main() -> None:
    """Measure what is missing, and print scores and correlations."""
    parser = subject(__doc__)
    parser.add_argument("--ifeval", required=True, help="IFEval's prompts, as JSONL.")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--general_limit", type=int)
    parser.add_argument("--max_gen_toks", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=20)
    args = parser.parse_args()
    quiet()
    args.general, args.no_task = ["offline", f"ifeval={args.ifeval}"], True
    args.data, args.general_data, args.limit, args.max_new_tokens = [], [], None, 16
    found = measured(args)
    models = ["base", *found]
    for metric in METRICS:
        both = [values(found, part, metric) for part in PARTS]
        scores = [each.sum(axis=1) for each in both]
        rows = [
            [model, *(f"{100 * score[place, 0] / score[place, 1]:.1f}" for score in scores)]
            for place, model in enumerate(models)
        ]
        print(f"\n{metric}, per cent\n{table(['scale', 'offline', 'ifeval'], rows)}")
        rho, low, high = correlation(both[0], both[1])
        items = " and ".join(str(each.shape[1]) for each in both)
        print(f"Spearman {rho:.2f} [{low:.2f}, {high:.2f}] over {len(models)} models, {items} items")


if __name__ == "__main__":
    main()
