"""Functions that write a tuned model's weights in a number format and measure how much of the tuning is kept.

W is a base weight, ``T = W + D`` the tuned weight (float32, the adapter folded in) and M the written weight. A number
format is too coarse where D is smaller than half its spacing at W: rounding T to the nearest value then gives W back.
The tuning is lost, although no single rounding error is large.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.generation.decoding import greedy, pad_id, stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.run.models import Sides

__all__ = [
    "LONGEST_ANSWER", "Answers", "Kept", "OtherBase", "Outputs", "Share", "stochastically", "write_weights",
]  # fmt: skip

ENOUGH = 0.95
"""Least share of the tuning that must be kept, by weights and by outputs."""

ENOUGH_ANSWERS = 0.96
"""Least share of greedy answers that must equal the adapter's."""

NOISE = 1e-6
"""KL, in nats per token, that float32 outputs of equal weights may differ by."""

LONGEST_ANSWER = 24
"""Number of tokens of an answer that are compared."""

Progress = Callable[[int], None]
Rounding = Callable[[Tensor, torch.dtype, torch.Generator], Tensor]


@dataclass(frozen=True)
class Share:
    """The share of the tuning that one adapted parameter, or several together, keep.

    Args:
        along: <M - W, D>.
        size: <D, D>.
        changed: Number of weights whose written value differs from that of the base weight.
        count: Number of weights.
    """

    along: float = 0.0
    size: float = 0.0
    changed: int = 0
    count: int = 0

    @classmethod
    def of(cls, written: Tensor, tuned: Tensor, base: Tensor) -> Share:
        """Return the share of one parameter from M in its number format, and T and W in float32."""
        delta = tuned - base
        return cls(
            along=float(torch.sum((written.float() - base) * delta, dtype=torch.float64)),
            size=float(torch.sum(delta * delta, dtype=torch.float64)),
            changed=int((written != base.to(written.dtype)).sum()),
            count=delta.numel(),
        )

    def __add__(self, other: Share) -> Share:
        return Share(
            self.along + other.along, self.size + other.size, self.changed + other.changed, self.count + other.count
        )

    @property
    def kept(self) -> float:
        """<M - W, D> / <D, D>: 1 where the whole tuning is kept, 0 where the base was written."""
        return self.along / self.size if self.size else 1.0


@dataclass(frozen=True)
class Kept:
    """The share of the tuning that a written model keeps.

    Args:
        dtype: Number format of the written weights.
        weights: :class:`Share` of each adapted parameter, by its name.
        outputs: Comparison of its outputs with the adapter's; ``None`` where no prompts were compared.
    """

    dtype: str
    weights: Mapping[str, Share]
    outputs: Outputs | None

    @property
    def total(self) -> Share:
        """Share of all adapted parameters together."""
        return sum(self.weights.values(), Share())

    @property
    def worst(self) -> str | None:
        """Name of the adapted parameter that keeps the smallest share; ``None`` where none was adapted."""
        return min(self.weights, key=lambda name: self.weights[name].kept, default=None)

    def lacks(self) -> str | None:
        """Return a clause that says where too little is kept, or ``None`` where enough is."""
        total, outputs = self.total, self.outputs
        if not total.kept >= ENOUGH:
            return f"its weights keep {total.kept:.0%} of what training changed"
        if outputs is None:
            return None
        if not outputs.same >= ENOUGH_ANSWERS * outputs.prompts:
            different = outputs.prompts - outputs.same
            return f"it answers {different} of {outputs.prompts} prompts differently from the adapter"
        if not outputs.kl <= (1 - ENOUGH) * outputs.base_kl + NOISE:
            return f"its outputs keep {outputs.kept:.0%} of what training changed"
        return None

    def __str__(self) -> str:
        total, worst = self.total, self.worst
        if worst is None:
            return f"written in {self.dtype}; the adapter changes no weight, so this is the base model"
        lines = [
            f"written in {self.dtype}; read back, the weights keep {total.kept:.1%} of what training changed (least in "
            f"{worst}: {self.weights[worst].kept:.1%}), and {total.changed / total.count:.0%} of the adapted weights "
            "differ from the base's"
        ]
        if self.outputs is not None:
            lines.append(str(self.outputs))
        return "\n".join(lines)


@dataclass(frozen=True)
class Outputs:
    """The distance of a written model's outputs from the adapter's, at the tokens of the adapter's greedy answers.

    Args:
        prompts: Number of prompts.
        same: Number of prompts whose greedy answer equals the adapter's, token by token.
        base_same: Number of prompts for which the base's greedy answer equals the adapter's.
        kl: KL(adapter || written), mean over tokens, in nats.
        base_kl: KL(adapter || base), mean over tokens, in nats.
    """

    prompts: int
    same: int
    base_same: int
    kl: float
    base_kl: float

    @property
    def kept(self) -> float:
        """1 - KL(adapter || written) / KL(adapter || base)."""
        return 1 - self.kl / max(self.base_kl, NOISE)

    def __str__(self) -> str:
        return (
            f"{self.same} of {self.prompts} greedy answers are the adapter's ({self.base_same} are the base's too); KL "
            f"from the adapter's outputs is {self.kl:.2g} nats a token, where the base's is {self.base_kl:.2g}"
        )


@dataclass(frozen=True)
class OtherBase:
    """What it changes that an adapter trained over a quantised base is put on the base in its own number format.

    Args:
        outputs: Comparison of the adapter on the full base with the adapter on the quantised one, which was trained.
        base_kl: KL(quantised base || full base), mean over tokens, in nats.
        base_logits: Difference of both bases' logits, up to a constant of each token: root mean square over vocabulary
            and tokens.
    """

    outputs: Outputs
    base_kl: float
    base_logits: float

    def __str__(self) -> str:
        return (
            f"on the unquantised base, {self.outputs.same} of {self.outputs.prompts} greedy answers are those of the "
            f"adapter on the quantised base that it was trained over; KL from its outputs is {self.outputs.kl:.2g} "
            f"nats a token, where training changed them by {self.outputs.base_kl:.2g}; the bases themselves are "
            f"{self.base_kl:.2g} nats a token apart (their logits by {self.base_logits:.2g})"
        )


@torch.no_grad()
def write_weights(
    model: PreTrainedModel,
    base: PreTrainedModel,
    dtype: torch.dtype,
    rounded: Rounding | None = None,
) -> dict[str, Share]:
    """Change the parameters of ``model`` from T to M, and return the share that each adapted one keeps.

    Args:
        model: Tuned model in float32 with its adapter folded in; changed in place.
        base: Base model in the number formats of its files.
        dtype: Number format to write. A parameter that the base keeps in another format than the rest is not written
            in a narrower one.
        rounded: Rounding of adapted parameters; ``None`` for :func:`stochastically`. All others are rounded to the
            nearest value.

    Raises:
        ConfigError: If a weight is not finite in this format.
    """
    originals = dict(base.named_parameters(remove_duplicate=False))
    own = base.dtype
    shares: dict[str, Share] = {}
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in model.named_parameters():
        original = originals[name].to(parameter.device)
        target = dtype if original.dtype == own else torch.promote_types(dtype, original.dtype)
        tuned, start = parameter.float(), original.float()
        written = tuned.to(target)
        if not bool(torch.isfinite(written).all()):
            raise ConfigError(
                f"a weight of {name} is not finite in {_name(target)}: the adapter is broken, or the range of the "
                "format is too small",
                "pass --dtype float32; if that fails too, train anew.",
            )
        if not torch.equal(tuned, start):
            device = parameter.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(0))
            written = (rounded or stochastically)(tuned, target, generator)
            shares[name] = Share.of(written, tuned, start)
        parameter.data = written
    model.config.dtype = dtype
    return shares


def stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """P(upper) = (x - lower) / (upper - lower): round each value at random to a neighbour in ``dtype``, unbiased.

    Values that are exact in the format stay as they are. A layer computes sums, and the sum of many small changes of
    weights is kept on average; rounding to the nearest would lose each of them.

    Args:
        values: Values in float32, of any shape, all finite in ``dtype``.
        dtype: Number format: float16, bfloat16 or float32.
        generator: Random generator on the device of ``values``.
    """
    if dtype.itemsize >= values.dtype.itemsize:
        return values.to(dtype)
    size = values.abs()
    nearest = size.to(dtype)
    # The bit patterns of non-negative floats are ordered as their values.
    lower = nearest.view(torch.int16) - (nearest.float() > size).to(torch.int16)
    low, high = lower.view(dtype).float(), (lower + 1).view(dtype).float()
    draws = torch.rand(size.shape, generator=generator, device=size.device)
    upper = draws < (size - low) / (high - low)
    return (lower + upper.to(torch.int16)).view(dtype).copysign(values.to(dtype))


@dataclass(frozen=True)
class Answers:
    """The adapter's greedy answers to some prompts, and the distributions of adapter and base at each of their tokens.

    Make one with :meth:`of`.

    Args:
        prompts: Token ids of the prompts.
        ids: Token ids of the answers, one for each prompt.
        adapter: log p(. | prompt, answer so far) of the adapter, T x V for each prompt, float32 on the CPU.
        base: The same log probabilities of the base.
    """

    prompts: Sequence[Sequence[int]]
    ids: Sequence[Sequence[int]]
    adapter: Sequence[Tensor]
    base: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        sides: Sides,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        prompts: Sequence[Sequence[int]],
        progress: Progress = lambda _: None,
    ) -> Answers:
        """Generate the adapter's answers, and compute the distributions of adapter and base.

        Args:
            sides: Base and tuned model of the run.
            tokenizer: Tokenizer of the run.
            renderer: Renderer of the run.
            prompts: Token ids of the prompts.
            progress: Function called with the number of passes done; each prompt has three.
        """
        count = len(prompts)
        with sides.side("tuned") as model:
            ids = greedy(
                model,
                prompts,
                stops=stop_ids(model, tokenizer, renderer),
                pad=pad_id(tokenizer),
                max_new_tokens=LONGEST_ANSWER,
                batch_size=8,
                progress=progress,
            )
            adapter = _outputs(model, prompts, ids, lambda done: progress(count + done))
        with sides.side("base") as model:
            return cls(prompts, ids, adapter, _outputs(model, prompts, ids, lambda done: progress(2 * count + done)))

    def compare(self, model: PreTrainedModel, progress: Progress = lambda _: None) -> Outputs:
        """Compare a written model with the adapter.

        Its greedy answer equals the adapter's where its likeliest token does at every token of the answer: both have
        then the same context at each token.

        Args:
            model: Written model, in evaluation mode.
            progress: Function called with the number of prompts done.
        """
        written = _outputs(model, self.prompts, self.ids, progress)
        return Outputs(
            prompts=len(self.prompts),
            same=_same(self.adapter, written),
            base_same=_same(self.adapter, self.base),
            kl=_kl(self.adapter, written),
            base_kl=_kl(self.adapter, self.base),
        )

    def on_other_base(self, sides: Sides, progress: Progress = lambda _: None) -> OtherBase:
        """Compare the models of these answers with the same adapter, and no adapter, on another form of the base.

        Args:
            sides: Base in the other form, and the adapter on it.
            progress: Function called with the number of passes done; each prompt has two.
        """
        with sides.side("tuned") as model:
            outputs = self.compare(model, progress)
        with sides.side("base") as model:
            base = _outputs(model, self.prompts, self.ids, lambda done: progress(len(self.prompts) + done))
        squares = [_centred(one - other).square().mean(-1) for one, other in zip(self.base, base, strict=True)]
        return OtherBase(outputs, _kl(self.base, base), float(torch.cat(squares).mean().sqrt()))


def _centred(difference_TV: Tensor) -> Tensor:
    return difference_TV - difference_TV.mean(dim=-1, keepdim=True)


def _outputs(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], progress: Progress
) -> list[Tensor]:
    device = model.get_input_embeddings().weight.device
    takes_limit = "logits_to_keep" in inspect.signature(model.forward).parameters
    outputs = []
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
        ids = torch.tensor([[*prompt, *answer[:-1]]], device=device)
        last = {"logits_to_keep": len(answer)} if takes_limit else {}
        with torch.no_grad():
            logits_TV = model(input_ids=ids, use_cache=False, **last).logits[0, -len(answer) :]
        outputs.append(logits_TV.float().log_softmax(-1).cpu())
        progress(place)
    return outputs


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> int:
    return sum(bool((a.argmax(-1) == b.argmax(-1)).all()) for a, b in zip(one, other, strict=True))


def _kl(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    total = 0.0
    for a, b in zip(one, other, strict=True):
        log_ratio = torch.where(a > -torch.inf, a - b, 0.0)
        total += float(torch.sum(a.exp() * log_ratio, dtype=torch.float64))
    return max(0.0, total / max(1, sum(len(a) for a in one)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
