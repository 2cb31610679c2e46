"""Estimates memory and arithmetic of a training on one device, from the sizes of model, micro-batch and settings.

The formulas are those of a dense decoder with gated feed-forward layers (Llama, Qwen, Mistral, Gemma and the like) in
PyTorch, counted tensor by tensor: what autograd keeps of a layer is listed in :func:`kept_bytes`.

Letters: ``L`` layers, ``H`` hidden, ``Q`` all query heads together, ``K`` all key heads together, ``I`` the inner width
of the feed-forward layers, ``V`` vocabulary, ``r`` rank of the adapter. Memory is in bytes, arithmetic in FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from selfaug.common.errors import ConfigError

__all__ = [
    "LINEAR", "FLOPs", "Memory", "MicroBatch", "ModelSizes", "Setup", "estimate_flops", "estimate_memory", "kept_bytes",
]  # fmt: skip

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of the linear layers of a decoder layer."""

FOUR_BIT = 0.5 + 1 / 127
"""Bytes of a weight in nf4 with double quantisation: 4 bits, and 8 + 32/256 bits for each 64 weights (QLoRA)."""


@dataclass(frozen=True)
class ModelSizes:
    """Widths of a dense decoder with gated feed-forward layers; the letters are those of the module.

    Args:
        layers: L.
        hidden: H.
        queries: Q, heads times the width of a head.
        keys: K, key heads times the width of a head.
        inner: I.
        vocabulary: V.
        tied: Whether embedding and output projection are one matrix.
        head_norms: Whether queries and keys are normalised by head (Qwen3, Gemma 3).
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool
    head_norms: bool = False

    @classmethod
    def of(cls, config: Any) -> ModelSizes:
        """Return the widths that a model's configuration gives.

        Raises:
            ConfigError: If the model is of another kind, for which the formulas do not hold.
        """
        text = config.get_text_config()
        experts = [name for name in ("num_experts", "num_local_experts", "n_routed_experts") if getattr(text, name, 0)]
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
        missing = [name for name in names if not isinstance(getattr(text, name, None), int)]
        gated = getattr(text, "hidden_act", getattr(text, "hidden_activation", None)) in ("silu", "gelu_pytorch_tanh")
        if experts or missing or not gated or text.model_type in ("gpt2", "gpt_neox", "phi"):
            raise ConfigError(
                f"a model of type {text.model_type!r} is no dense decoder with gated feed-forward layers, and only of "
                "these the memory can be estimated",
                "time a few steps of it with --max_steps 3 instead.",
            )
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            queries=heads * width,
            keys=(getattr(text, "num_key_value_heads", None) or heads) * width,
            inner=text.intermediate_size,
            vocabulary=text.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", getattr(text, "tie_word_embeddings", False))),
            head_norms=text.model_type.startswith(("qwen3", "gemma3")),
        )

    def linear(self, name: str) -> tuple[int, int]:
        """Return the widths of the input and the output of a linear layer of :data:`LINEAR`."""
        widths = {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "down_proj": (self.inner, self.hidden),
        }
        return widths.get(name, (self.hidden, self.inner))

    @property
    def layer(self) -> int:
        """Number of weights of the linear layers of one layer: ``2HQ + 2HK + 3HI``."""
        return sum(a * b for a, b in map(self.linear, LINEAR))

    @property
    def table(self) -> int:
        """Number of weights of the embedding, and of the output projection: ``VH``."""
        return self.vocabulary * self.hidden

    @property
    def rest(self) -> int:
        """Number of weights outside the linear layers: embedding, head, norms."""
        return self.table * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.layers * self.layer + self.rest

    def adapter(self, rank: int, targets: tuple[str, ...]) -> int:
        """Number of weights of a LoRA adapter: ``L Σ r (in + out)``."""
        return self.layers * sum(rank * sum(self.linear(name)) for name in targets)


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a device.

    Args:
        rows: Number of rows.
        tokens: Number of tokens of each row, padding included; with packing, of all documents together.
        responses: Number of response tokens of all rows.
        aligned: Number of aligned tokens of all rows that are drawn.
        reference: Number of tokens of the reference pass.
        document: Number of tokens of a document, over which attention goes; 0 for those of the row.
        masked: Whether attention gets a mask: rows of unequal lengths, or packed ones without flash attention.
    """

    rows: int
    tokens: int
    responses: int
    aligned: int
    reference: int
    document: int = 0
    masked: bool = False

    @property
    def all(self) -> int:
        """Number of tokens of the training pass."""
        return self.rows * self.tokens


@dataclass(frozen=True)
class Setup:
    """What decides the memory, besides model and micro-batch.

    Args:
        rank: Rank of the LoRA adapter; ``None`` to train every weight.
        targets: Linear layers with an adapter.
        linear_bytes: Bytes of a weight of the linear layers: 4, 2, 1 (8 bits) or :data:`FOUR_BIT`.
        rest_bytes: Bytes of a weight elsewhere.
        trained_bytes: Bytes of a trained weight and of its gradient.
        averages_bytes: Bytes of the optimiser's averages of a trained weight: 8 for AdamW's two in float32.
        compute_bytes: Bytes of an activation: 4 or 2.
        checkpointing: Whether only the input of each layer is kept for the backward pass.
        reference: ``none``, ``base``, ``initial``, ``path`` or ``cached``.
        accumulation: Number of micro-batches of a step.
        block_bytes: Bytes that the row blocks of the loss may take.
        devices: Number of devices.
        sharding: ``none`` (one device, DDP), ``optimizer`` (ZeRO-2) or ``all`` (FSDP2, ZeRO-3).
        frozen_head: Whether the output projection, and an embedding that is tied to it, stay as they are.
        dropout_bytes: Bytes of an entry of the mask of the adapter's dropout: 1 on a GPU, on a CPU those of a trained
            weight; ``None`` without dropout.
    """

    rank: int | None
    targets: tuple[str, ...] = LINEAR
    linear_bytes: float = 4
    rest_bytes: int = 4
    trained_bytes: int = 4
    averages_bytes: float = 8
    compute_bytes: int = 4
    checkpointing: bool = False
    reference: str = "base"
    accumulation: int = 1
    block_bytes: int = 160 * 2**20
    devices: int = 1
    sharding: str = "none"
    frozen_head: bool = False
    dropout_bytes: int | None = None

    @property
    def trains_head(self) -> bool:
        """Whether the output projection gets gradients."""
        return self.rank is None and not self.frozen_head

    @property
    def autocast(self) -> bool:
        """Whether layers work in a narrower format than their weights have, so that weights are copied."""
        return self.compute_bytes < self.linear_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number between the layers: float32 where autocast works on float32 weights."""
        return 4 if self.autocast else self.compute_bytes

    def trained(self, model: ModelSizes) -> int:
        """Return the number of trained weights."""
        if self.rank is not None:
            return model.adapter(self.rank, self.targets)
        return model.weights - (model.table if self.frozen_head else 0)


def kept_bytes(model: ModelSizes, setup: Setup, batch: MicroBatch) -> float:
    """Return what autograd keeps of one layer for the backward pass, without checkpointing.

    For each token, with e bytes for an activation and s for a number between the layers::

        both norms     2·4·H (their input in float32), and 2·s·H (normalised) where their weights are trained;
                       norms of queries and keys likewise
        linear layers  e·(H + H + I): their inputs, one for q, k and v together, one for gate and up together; o's is
                       the output of attention. Of a frozen layer without an adapter nothing is kept
        adapters       e·r for each; with dropout also its own input, and a mask of its size
        attention      e·(2Q + 2K): queries, keys, values, output; 2Q in place of 2K where a mask asks for repeated keys
        feed-forward   3·e·I: gate, its activation, up

    A layer whose weights have another number format than its input keeps a copy of its own in place of the common
    input, and of its weights. With a mask each token keeps ``e·tokens`` more, since each layer converts it.
    """
    e, H, Q, K, I = setup.compute_bytes, model.hidden, model.queries, model.keys, model.inner  # noqa: E741
    full = setup.rank is None
    norms = 2 * H * (4 + (setup.stream_bytes if full else 0))
    if model.head_norms:
        norms += (Q + K) * (4 + (e if full else 0))
    copies_adapter = not full and setup.trained_bytes != e
    drops = setup.dropout_bytes is not None
    inputs = adapters = weights = masks = 0
    for group, follows_norm in ((LINEAR[:3], True), (LINEAR[3:4], False), (LINEAR[4:6], True), (LINEAR[6:], False)):
        trained = [name for name in group if full or name in setup.targets]
        copies = copies_adapter or drops or (full and setup.autocast and follows_norm)
        if trained and (copies or group != ("o_proj",)):
            inputs += model.linear(group[0])[0] * (len(trained) if copies else 1)
        adapters += (setup.rank or 0) * len(trained)
        masks += (setup.dropout_bytes or 0) * model.linear(group[0])[0] * len(trained)
        weights += sum((setup.rank or 0) * sum(model.linear(name)) for name in trained) if copies_adapter else 0
    weights += model.layer if setup.autocast else 0
    attention = 2 * Q + 2 * (Q if batch.masked else K)
    mask = batch.tokens if batch.masked else 0
    return batch.all * (norms + masks + e * (inputs + adapters + attention + 3 * I + mask)) + e * weights


@dataclass(frozen=True)
class Memory:
    """Peak memory of a device by part, in bytes.

    Args:
        weights: Weights of the model.
        adapter: Weights of the adapter, and its frozen copy with ``reference="initial"``.
        optimizer: Averages of the optimiser.
        gradients: Gradients of the trained weights that exist when the peak is reached.
        activations: What the backward pass needs, and its own workspace.
        logits: Row blocks of the loss, final hidden states and their gradients.
        frozen: Frozen copy of the model with a path as reference.
        gathered: Weights of other devices that are gathered for a layer and for the head.
    """

    weights: float
    adapter: float
    optimizer: float
    gradients: float
    activations: float
    logits: float
    frozen: float
    gathered: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(getattr(self, entry.name) for entry in fields(self)))


def estimate_memory(model: ModelSizes, setup: Setup, batch: MicroBatch) -> Memory:
    """Return the peak memory of a device.

    The peak is the largest of three moments: the loss, when all activations are there and a block of logits; the turn
    to the backward pass, when the last layer's gradients are formed beside all activations; and the end of the backward
    pass, when all gradients are there and the activations of one layer. With checkpointing a layer's activations exist
    only while its backward pass runs.
    """
    e, s, tokens, H, I = setup.compute_bytes, setup.stream_bytes, batch.all, model.hidden, model.inner  # noqa: E741
    full = setup.rank is None
    split = setup.devices if setup.sharding == "all" else 1
    split_state = setup.devices if setup.sharding != "none" else 1
    weights = model.layers * model.layer * setup.linear_bytes + model.rest * setup.rest_bytes
    trained = setup.trained(model) * setup.trained_bytes
    compared = batch.aligned if setup.reference != "none" else 0

    layer = kept_bytes(model, setup, batch)
    mask = batch.rows * batch.tokens**2 if batch.masked else 0
    kept = model.layers * (tokens * H * s if setup.checkpointing else layer) + mask
    workspace = tokens * (3 * I * e + 2 * H * s)  # gradients of gate, its activation and up; of the layer's ends
    # The last norm's input and output, the gradient that the loss returns, and the reference's states, taken twice.
    final = tokens * H * (4 + s + s + (s if full else 0)) + 2 * compared * H * s
    block = min(setup.block_bytes, max(compared, batch.responses) * model.vocabulary * e * (2 if compared else 1))
    copied_head = model.table * e if setup.autocast else 0
    # The head's gradient adds up in float32, and is copied in the backward pass.
    head = model.table * 4 if setup.trains_head else 0
    held = trained / split_state if setup.accumulation > 1 else 0.0
    # The gradient of a tied embedding is formed beside the head's.
    whole = (trained + (model.table * setup.trained_bytes if setup.trains_head and model.tied else 0)) / split_state
    in_layer = workspace + (layer if setup.checkpointing else 0)
    moments = [
        {"gradients": held + head, "activations": kept, "logits": final + block + copied_head},
        {"gradients": held + 2 * head, "activations": kept + in_layer, "logits": final},
        {"gradients": whole, "activations": layer + workspace + mask, "logits": 0.0},
    ]
    expanded = H * I * e if setup.linear_bytes < 2 else 0  # a quantised layer's weights for one product
    gathered = 2 * model.layer * setup.linear_bytes + model.table * setup.rest_bytes if split > 1 else 0
    return Memory(
        weights=weights / split,
        adapter=0.0 if full else trained / split * (2 if setup.reference == "initial" else 1),
        optimizer=setup.trained(model) * setup.averages_bytes / split_state,
        frozen=weights / split if setup.reference == "path" else 0.0,
        gathered=float(gathered + expanded),
        **max(moments, key=lambda moment: sum(moment.values())),
    )


@dataclass(frozen=True)
class FLOPs:
    """Arithmetic of a micro-batch on a device, in FLOPs; norms, activations and softmax count nothing.

    Args:
        training: Forward and backward pass of the body, with recomputation under checkpointing.
        reference: Reference pass.
        loss: Products with the output projection.
    """

    training: float
    reference: float
    loss: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.training + self.reference + self.loss


def estimate_flops(model: ModelSizes, setup: Setup, batch: MicroBatch) -> FLOPs:
    """Return the arithmetic of a micro-batch.

    A token costs 2 FLOPs a weight in the forward pass, 2 in the backward pass for the gradient that goes on, and 2 for
    that of a trained weight. Attention is causal: half of ``2·2·tokens·Q`` forward, twice that backward.
    """
    full = setup.rank is None
    linear = model.layers * model.layer
    adapter = 0 if setup.rank is None else model.adapter(setup.rank, setup.targets)
    attention = model.layers * 2 * (batch.document or batch.tokens) * model.queries
    forward = 2 * linear + 2 * adapter + attention
    backward = 2 * linear * (2 if full else 1) + 4 * adapter + 2 * attention
    training = batch.all * (forward * (2 if setup.checkpointing else 1) + backward)
    with_pass = setup.reference in ("base", "initial", "path")
    reference = batch.reference * (2 * linear + attention) if with_pass else 0
    head = 2 * model.table
    of_response = 3 if setup.trains_head else 2
    compared = 0 if setup.reference == "none" else batch.aligned * (of_response + 1)
    return FLOPs(float(training), float(reference), float(head * (batch.responses * of_response + compared)))
