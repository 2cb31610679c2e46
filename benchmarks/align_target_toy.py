r"""What does the controller of `--align_target` do on a small problem of which hundreds of runs take a minute?

    python benchmarks/align_target_toy.py --seeds 20

A softmax layer behind a low-rank adapter (AdamW, learning rate falling to 0) learns responses that pull it away from
its base, while its shift on prompts, KL(base ‖ tuned), is weighed by α. Prompts are sequences of tokens that resemble
one another, of which a share is drawn. All targets and fixed α of a seed see the same data and are trained side by
side. After training the shift is taken on fresh prompts, and the expected response NLL on fresh inputs.

The NLL at equal shift is interpolated between the two fixed α around it, over log shift. It is shown in points: per
cent of what training without alignment gains over the base. Intervals: 4,000 draws of seeds.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise

import numpy as np
import torch
from measure import table
from numpy.typing import NDArray

from selfaug.step.shift_target import ShiftTarget, first_weight

TARGETS = (0.02, 0.06, 0.15, 0.3)
FIXED = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
HIDDEN, VOCAB, RANK, TOKENS, RATE = 16, 32, 4, 12, 1.5e-2
Values = NDArray[np.float64]


def train(seed: int, steps: int, share: float, sequences: int) -> tuple[Values, Values]:
    """Shift and NLL of each fixed α, then of each target; last the base's."""
    torch.manual_seed(seed)
    W, U = torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5, 2 * torch.randn(VOCAB, HIDDEN) / HIDDEN**0.5
    centre, wanted = torch.randn(HIDDEN), torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5
    controls = [ShiftTarget(target, first_weight(target), share) for target in TARGETS]
    runs = len(FIXED) + len(TARGETS)
    A = (torch.randn(RANK, HIDDEN) / HIDDEN**0.5).repeat(runs, 1, 1).requires_grad_()
    B = torch.zeros(runs, HIDDEN, RANK, requires_grad=True)
    optimizer = torch.optim.AdamW([A, B], lr=RATE, weight_decay=0.0)

    def log_p(layer: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(layer.tanh() @ U.T * 2, dim=-1)

    def tuned(x: torch.Tensor) -> torch.Tensor:
        return log_p(x @ W.T + 2 * (x @ A.mT) @ B.mT)

    def prompts(count: int) -> torch.Tensor:
        return torch.randn(count, TOKENS, HIDDEN) + torch.randn(count, 1, HIDDEN)

    def kl(x: torch.Tensor) -> torch.Tensor:
        q = log_p(x @ W.T)
        return (q.exp() * (q - tuned(x))).sum((1, 2))

    for step in range(steps):
        part = 1 - step / steps
        optimizer.param_groups[0]["lr"] = RATE * part
        x = torch.randn(2 * sequences, HIDDEN) + centre
        label = log_p(x @ (W + wanted).T).exp().multinomial(1)[:, 0]
        nll = -tuned(x)[:, torch.arange(len(label)), label].mean(1)
        drawn = prompts(sequences)[torch.rand(sequences) < share].reshape(-1, HIDDEN)
        nats = kl(drawn) if len(drawn) else torch.zeros(runs)
        alpha = torch.tensor([*FIXED, *(control.alpha for control in controls)])
        loss = nll + alpha * nats / (share * sequences * TOKENS)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        for control, one in zip(controls, nats[len(FIXED) :].tolist(), strict=True):
            control.update(one, len(drawn), 1 - (step + 1) / steps)
    with torch.no_grad():
        fresh = prompts(100).reshape(-1, HIDDEN)
        x = torch.randn(1500, HIDDEN) + centre
        right = log_p(x @ (W + wanted).T).exp()
        losses = torch.cat([-(right * tuned(x)).sum(-1).mean(1), -(right * log_p(x @ W.T)).sum(-1).mean()[None]])
        return (kl(fresh) / len(fresh)).double().numpy(), losses.double().numpy()


def cost(shifts: Values, losses: Values, place: int) -> float:
    """NLL of a target's run above that of fixed α at the same shift, in per cent of the gain of α = 0."""
    front = sorted(zip(shifts[: len(FIXED)], losses[: len(FIXED)], strict=True))
    for (low, low_nll), (high, high_nll) in pairwise(front):
        if low <= shifts[place] <= high:
            part = math.log(shifts[place] / low) / math.log(high / low)
            there = (1 - part) * low_nll + part * high_nll
            return 100 * float(losses[place] - there) / float(losses[-1] - losses[0])
    return math.nan


def interval(values: Values) -> str:
    """The mean of values of seeds and its 95 % interval."""
    draw = np.random.default_rng(0)
    means = [float(values[draw.integers(0, len(values), len(values))].mean()) for _ in range(4000)]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(values.mean(), *np.quantile(means, [0.025, 0.975]))


def main() -> None:
    """Train all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for steps, share, sequences in ((60, 1.0, 8), (150, 1.0, 8), (60, 0.125, 32), (150, 0.125, 32)):
        found = [train(seed, steps, share, sequences) for seed in range(args.seeds)]
        places = range(len(FIXED), len(FIXED) + len(TARGETS))
        costs = np.array([[cost(*one, place) for place in places] for one in found])
        for target, place in zip(TARGETS, places, strict=True):
            reached = np.array([one[0][place] for one in found]) / target
            spread = f"{np.exp(np.log(reached).mean()):.2f} ({reached.min():.2f} to {reached.max():.2f})"
            lines.append([str(steps), f"{share:g}", f"{target:g}", spread, interval(-costs[:, place - len(FIXED)])])
        lines.append([str(steps), f"{share:g}", "all", "", interval(-np.nanmean(costs, axis=1))])
    print(table(["steps", "fraction", "target", "reached / target", "points against fixed α at equal shift"], lines))


if __name__ == "__main__":
    main()
