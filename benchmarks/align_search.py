r"""Which form of alignment on general texts keeps most? A plain training loop in which each idea is a few lines.

    python benchmarks/align_search.py --shared DIR --world lab1 --runs FILE [--only NAME ...] [--seeds N]

Worlds: `lab1` (lab:small, questions with one document), `lab4` (lab, four documents), `mctest` and `squad`
(stories260k). LoRA r 16 (alpha 32) on all linear layers, AdamW, learning rate falling to 0, float32. Nothing of the
package trains here but EWC's Fisher information and penalty; the losses are dense. Written down are

    task        answers whose every token is the most likely one after the right ones before it, in percent (the lab:
                what greedy decoding gives exactly), and their NLL
    general     right answers to the lab's test items by greedy decoding, in percent (lab); minus the NLL of stories
                (mctest, squad)
    kl          KL(base || tuned) a token, on the right answers to these items, or the stories

Each line of FILE is one finished run; a start runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import quiet, table
from small_runs import LORA, PROMPT, Row, fitting, load
from torch import Tensor

from selfaug.before.fisher import fisher_diagonal
from selfaug.common.statistics import Items, difference, value
from selfaug.data.encode import encode
from selfaug.data.prompts import Renderer
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.lab.item import chat, passes
from selfaug.lab.shipped import resolve
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.task import Distance, rows
from selfaug.lab.world import World
from selfaug.model.libraries import lora_pairs
from selfaug.step.parameter_terms import weighted_squared_norm


@dataclass(frozen=True)
class Recipe:
    """A training: rows trained and held out, rows of a batch, epochs, learning rate."""

    train: int
    held_out: int
    batch: int
    epochs: int
    rate: float


RECIPES = {
    "lab1": Recipe(480, 200, 8, 1, 1e-2),
    "lab4": Recipe(480, 200, 8, 1, 1e-2),
    "mctest": Recipe(345, 120, 8, 1, 2e-3),
    "squad": Recipe(248, 120, 8, 1, 6.32e-3),
}
TEXTS = 240
ITEMS = 30  # of each skill
IGNORED = -100


@dataclass(frozen=True)
class Setting:
    """One idea. The loss is NLL + alpha · KL on prompts + text · KL on texts, each divided by its own tokens.

    Args:
        alpha: Weight of prompts.
        text: Weight of texts.
        joint: Whether prompts and texts share one divisor and the weight ``alpha``, as rows of one data set do.
        source: Texts: what the base writes (`self`), of the kind to be kept (`own`), of another kind (`foreign`),
            uniformly drawn tokens (`random`), the training prompts' tokens in random order (`shuffled`).
        texts: Texts of a step, beside its rows.
        pool: Number of different texts.
        direction: KL(base || tuned), its reverse, or Jensen-Shannon.
        schedule: Factor on both weights over the training: 1, or from 2 to 0 (`decay`), or from 0 to 2 (`warm-up`).
        positions: Share of the positions that is aligned: all, 1/16 drawn evenly (`even`), or 1/16 drawn in proportion
            to their KL and weighted back (`importance`).
        clip: Largest norm of the gradient of the alignment, as a multiple of that of the NLL; 0 for none.
        max_norm: Largest norm of the whole gradient; 0 for none.
        ewc: Weight of EWC's penalty, with F of `fisher`.
        fisher: Texts of the Fisher information: `prompts` or `texts`.
        hidden: Weight of the squared difference of the middle layer's states on texts.
        shrink: Factor on the update after training, as `wise-ft`.
        replay: Weight of the NLL on the texts, each divided by its tokens.
        rate: Factor on the learning rate.
        epochs: Factor on the epochs.
    """

    alpha: float = 0.0
    text: float = 0.0
    joint: bool = False
    source: str = "self"
    texts: int = 2
    pool: int = TEXTS
    direction: str = "base_to_tuned"
    schedule: str = "constant"
    positions: str = "all"
    clip: float = 0.0
    max_norm: float = 1.0
    ewc: float = 0.0
    fisher: str = "prompts"
    hidden: float = 0.0
    shrink: float = 1.0
    replay: float = 0.0
    rate: float = 1.0
    epochs: float = 1.0

    @property
    def reads_texts(self) -> bool:
        """Whether a step has texts beside its rows."""
        return bool(self.text or self.joint or self.hidden or self.replay)


S = Setting
SETTINGS: dict[str, Setting] = {
    "sft": S(),
    "sft, rate 1/2": S(rate=0.5),
    "sft, rate 1/4": S(rate=0.25),
    "selfaug 0.5": S(alpha=0.5),
    "selfaug 2": S(alpha=2),
    "selfaug 8": S(alpha=8),
    "ewc 1": S(ewc=1),
    "ewc 4": S(ewc=4),
    "ewc 16": S(ewc=16),
    "replay own, 2 a step": S(replay=1, source="own"),
    # --align_data: prompts and texts share one divisor and alpha; two texts beside eight rows are a share of 0.2.
    "joint": S(alpha=2, joint=True),
    "joint, 8 texts a step": S(alpha=2, joint=True, texts=8),
    "joint, alpha 4": S(alpha=4, joint=True),
    "joint, own": S(alpha=2, joint=True, source="own"),
    "joint, foreign": S(alpha=2, joint=True, source="foreign"),
    "joint, random": S(alpha=2, joint=True, source="random"),
    "joint, shuffled": S(alpha=2, joint=True, source="shuffled"),
    "joint, 30 texts in all": S(alpha=2, joint=True, pool=30),
    "joint, reverse": S(alpha=2, joint=True, direction="tuned_to_base"),
    "joint, jsd": S(alpha=2, joint=True, direction="jsd"),
    "joint, decay": S(alpha=2, joint=True, schedule="decay"),
    "joint, warm-up": S(alpha=2, joint=True, schedule="warm-up"),
    "joint, clipped to the nll": S(alpha=2, joint=True, clip=1),
    "joint, no clipping": S(alpha=2, joint=True, max_norm=0),
    "joint, even 1/16": S(alpha=2, joint=True, positions="even"),
    "joint, importance 1/16": S(alpha=2, joint=True, positions="importance"),
    "joint and ewc 1": S(alpha=2, joint=True, ewc=1),
    "joint, rate 1/2": S(alpha=2, joint=True, rate=0.5),
    "joint, scaled 0.9": S(alpha=2, joint=True, shrink=0.9),
    "joint and hidden": S(alpha=2, joint=True, hidden=2),
    # Texts with a weight and a divisor of their own.
    "text 2": S(text=2),
    "0.5 and text 2": S(alpha=0.5, text=2),
    "2 and text 2": S(alpha=2, text=2),
    "2 and ewc 1": S(alpha=2, ewc=1),
    "ewc 4, of texts": S(ewc=4, fisher="texts"),
}


@dataclass
class Loaded:
    """A world: model, rows, texts by source, and what is measured."""

    checkpoint: Path
    tokenizer: Any
    train: list[Row]
    answers: list[Row]
    general: list[Row]
    items: list[Any]
    texts: dict[str, list[Row]]
    cache: dict[int, Tensor] = field(default_factory=dict)  # the base's log-probabilities, by row

    def model(self) -> Any:
        """The model as it came."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32)


def _lab(world: str, recipe: Recipe) -> Loaded:
    from transformers import AutoTokenizer

    checkpoint = Path(resolve("lab:small" if world == "lab1" else "lab"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    documents = 1 if world == "lab1" else 4

    def encoded(part: Any, count: int) -> list[Row]:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            made = rows(part, count, World.make(), Distance(documents=documents))
            file.write("".join(json.dumps(row) + "\n" for row in made))
            file.flush()
            records = [item for item in read_rows(Path(file.name)).items if isinstance(item, Record)]
        renderer = Renderer.for_tokenizer(tokenizer)
        return [Row(**row) for row in encode(records, tokenizer, renderer, max_length=None).rows]

    def answered(item: Any) -> Row:
        prompt, answer = (tokenizer(t)["input_ids"] for t in (chat(item.turns), f"{item.answer}<|im_end|>"))
        return Row(prompt + answer, [IGNORED] * len(prompt) + answer)

    test = [item for skill in SKILLS for item in items(skill, "test", ITEMS, World.make())]
    own = [item for skill in SKILLS for item in items(skill, "train", TEXTS // len(SKILLS) + 1, World.make())]
    random.Random(0).shuffle(own)
    train = encoded("train", recipe.train)
    return Loaded(checkpoint, tokenizer, train, encoded("test", recipe.held_out), [answered(i) for i in test], test,
                  {"own": [answered(i) for i in own]})  # fmt: skip


def _stories(world: str, recipe: Recipe, shared: Path) -> Loaded:
    whole = load(shared, world)
    first = fitting(shared, whole.tokenizer, world, "train", PROMPT)
    train = [row for _, row in first][: recipe.train]
    texts = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[-TEXTS:]
    own = [Row(ids, ids) for ids in (whole.tokenizer(text)["input_ids"][:512] for text in texts)]
    return Loaded(whole.checkpoint, whole.tokenizer, train, whole.answers[: recipe.held_out], whole.general[:80], [],
                  {"own": own})  # fmt: skip


@torch.no_grad()
def written(loaded: Loaded, count: int) -> list[Row]:
    """Texts that the base writes at temperature 1: a user's turn and the answer (lab), or from the start token."""
    torch.manual_seed(0)
    model, tokenizer = loaded.model().eval(), loaded.tokenizer
    texts: list[str] = []
    if not loaded.items:
        start = torch.full((count, 1), tokenizer.bos_token_id)
        ids = model.generate(start, do_sample=True, top_k=0, max_new_tokens=255, pad_token_id=tokenizer.eos_token_id)
        return [Row(row, row) for row in ids.tolist()]
    found = []
    opening = tokenizer("<|im_start|>user\n")["input_ids"]
    turns = model.generate(torch.tensor([opening] * count), do_sample=True, top_k=0, max_new_tokens=120)
    for row in turns.tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        texts.append(tokenizer.decode(row[:end]) + "<|im_end|>\n<|im_start|>assistant\n")
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    answers = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
    for text, row in zip(texts, answers.tolist(), strict=True):
        answer = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
        prompt = tokenizer(text)["input_ids"]
        found.append(Row(prompt + answer, [IGNORED] * len(prompt) + answer))
    return found


def world_of(world: str, recipe: Recipe, shared: Path) -> Loaded:
    """Everything of a world, texts of all sources among it."""
    loaded = _lab(world, recipe) if world.startswith("lab") else _stories(world, recipe, shared)
    vocabulary, draw = loaded.model().config.vocab_size, random.Random(1)
    loaded.texts["self"] = written(loaded, TEXTS)
    lengths = [len(row.input_ids) for row in loaded.texts["self"]]
    noise = [[draw.randrange(vocabulary) for _ in range(n)] for n in lengths]
    mixed = [draw.sample(row.input_ids, len(row.input_ids)) for row in loaded.train]
    loaded.texts["random"] = [Row(ids, ids) for ids in noise]
    loaded.texts["shuffled"] = [Row(ids, ids) for ids in mixed]
    if loaded.items:
        stories = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[-TEXTS:]
        ids = [loaded.tokenizer(text)["input_ids"][:100] for text in stories]
    else:
        made = [i for skill in SKILLS for i in items(skill, "train", TEXTS // len(SKILLS) + 1, World.make())]
        ids = [loaded.tokenizer(chat(i.turns) + i.answer)["input_ids"] for i in made]
    loaded.texts["foreign"] = [Row(row, row) for row in ids]
    return loaded


def kept_world(world: str, recipe: Recipe, shared: Path, file: Path) -> Loaded:
    """The world as an earlier start made it, or made now."""
    if not file.exists():
        torch.save(world_of(world, recipe, shared), file)
    loaded: Loaded = torch.load(file, weights_only=False)  # our own file, written a moment or a start ago
    return loaded


def padded(found: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Token ids and labels, B x T; padding stands behind a causal model's text, where it changes nothing before it."""
    longest = max(len(row.input_ids) for row in found)
    ids_BT = torch.zeros(len(found), longest, dtype=torch.int64)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for b, row in enumerate(found):
        ids_BT[b, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels_BT[b, : len(row.labels)] = torch.tensor(row.labels)
    return ids_BT, labels_BT


class Teacher:
    """The base's next-token log-probabilities of rows, computed once for each row."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._known = loaded.model().eval(), loaded.cache

    @torch.no_grad()
    def __call__(self, row: Row) -> Tensor:
        """Of one row, T - 1 x V."""
        key = id(row)
        if key not in self._known:
            logits_TV = self._model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
            self._known[key] = logits_TV.float().log_softmax(-1)
        return self._known[key]


def divergence(base_NV: Tensor, tuned_NV: Tensor, direction: str) -> Tensor:
    """Of log-probabilities, row by row, in nats."""
    if direction == "tuned_to_base":
        return (tuned_NV.exp() * (tuned_NV - base_NV)).sum(-1)
    if direction == "jsd":
        middle_NV = torch.logaddexp(base_NV, tuned_NV) - math.log(2)
        halves = [(x.exp() * (x - middle_NV)).sum(-1) for x in (base_NV, tuned_NV)]
        return (halves[0] + halves[1]) / 2
    return (base_NV.exp() * (base_NV - tuned_NV)).sum(-1)


def drawn(kl_N: Tensor, positions: str) -> Tensor:
    """The sum over all positions, estimated without bias from a sixteenth of them."""
    if positions == "all" or len(kl_N) < 32:
        return kl_N.sum()
    count = len(kl_N) // 16
    if positions == "even":
        chosen = torch.randperm(len(kl_N))[:count]
        return kl_N[chosen].sum() * len(kl_N) / count
    share_N = 0.5 / len(kl_N) + 0.5 * kl_N.detach() / kl_N.detach().sum().clamp(min=1e-12)
    chosen = torch.multinomial(share_N, count, replacement=True)
    return (kl_N[chosen] / share_N[chosen]).sum() / count


def losses(model: Any, step: Sequence[Row], texts: Sequence[Row], teacher: Teacher, s: Setting) -> dict[str, Tensor]:
    """The terms of a step: nll, prompts, texts, each a mean over its own tokens; hidden, and replay."""
    found = [*step, *texts]
    ids_BT, _ = padded(found)
    out = model(input_ids=ids_BT, use_cache=False, output_hidden_states=bool(s.hidden))
    nll, prompt_kl, text_kl, replay = [], [], [], []
    for b, row in enumerate(found):
        tuned_TV = out.logits[b, : len(row.input_ids) - 1].float().log_softmax(-1)
        labels_T, ids_T = torch.tensor(row.labels), torch.tensor(row.input_ids)
        if b < len(step):
            answer_T = labels_T[1:] != IGNORED
            nll.append(-tuned_TV[answer_T].gather(1, labels_T[1:][answer_T][:, None]).squeeze(1))
            if s.alpha:
                prompt_T = ~answer_T
                prompt_kl.append(divergence(teacher(row)[prompt_T], tuned_TV[prompt_T], s.direction))
            continue
        if s.replay:
            answer_T = labels_T[1:] != IGNORED
            replay.append(-tuned_TV[answer_T].gather(1, ids_T[1:][answer_T][:, None]).squeeze(1))
        if s.text or s.joint:
            text_kl.append(divergence(teacher(row), tuned_TV, s.direction))
    terms = {"nll": torch.cat(nll).mean()}
    if s.joint:
        both = torch.cat([*prompt_kl, *text_kl])
        return terms | {"prompts": drawn(both, s.positions) / len(both)}
    for name, values in (("prompts", prompt_kl), ("texts", text_kl), ("replay", replay)):
        if values:
            kl_N = torch.cat(values)
            terms[name] = drawn(kl_N, s.positions if name != "replay" else "all") / len(kl_N)
    if s.hidden:
        layer = len(out.hidden_states) // 2
        with torch.no_grad(), model.disable_adapter():
            states = model(input_ids=ids_BT, use_cache=False, output_hidden_states=True).hidden_states[layer]
        own_BTH = (out.hidden_states[layer] - states)[len(step) :]
        real_BT = torch.zeros(len(texts), ids_BT.shape[1], dtype=torch.bool)
        for b, row in enumerate(texts):
            real_BT[b, : len(row.input_ids)] = True
        terms["hidden"] = own_BTH[real_BT].square().mean()
    return terms


def factor(schedule: str, done: float) -> float:
    """The factor on the weights at this share of the training."""
    return {"constant": 1.0, "decay": 2 * (1 - done), "warm-up": 2 * done}[schedule]


def train(loaded: Loaded, s: Setting, seed: int, recipe: Recipe) -> dict[str, Any]:
    """One run, and what it left."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    start = time.process_time()
    model = get_peft_model(loaded.model(), LoraConfig(task_type="CAUSAL_LM", **{**LORA, "lora_dropout": 0.0}))
    teacher, draw = Teacher(loaded), random.Random(seed)
    pairs = [pair for pair in lora_pairs(model) if pair.W is not None]
    pool = loaded.texts[s.source][: s.pool]
    if s.ewc:
        read = pool[:256] if s.fisher == "texts" else loaded.train[:256]
        read_ids = [r.input_ids for r in read]
        if s.fisher == "prompts":
            read_ids = [[t for t, y in zip(r.input_ids, r.labels, strict=True) if y == IGNORED] for r in read]
        sums, tokens = fisher_diagonal(model.get_base_model(), read_ids)
        fisher = [total / tokens for total in sums]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate * s.rate, weight_decay=0.0)
    steps = round(recipe.epochs * s.epochs * (len(loaded.train) // recipe.batch))
    order: list[int] = []
    waiting: list[int] = []
    norms: list[list[float]] = []
    model.train()
    for step in range(steps):
        if len(order) < recipe.batch:
            order = draw.sample(range(len(loaded.train)), len(loaded.train))
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        beside: list[Row] = []
        if s.reads_texts:
            if len(waiting) < s.texts:
                waiting = draw.sample(range(len(pool)), len(pool))
            beside, waiting = [pool[i] for i in waiting[: s.texts]], waiting[s.texts :]
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * s.rate * (1 - step / steps)
        weigh = factor(s.schedule, step / steps)
        terms = losses(model, [loaded.train[i] for i in chosen], beside, teacher, s)
        weights = {"prompts": s.alpha, "texts": s.text, "hidden": s.hidden, "replay": s.replay}
        held = sum((weights[n] * weigh * v for n, v in terms.items() if n != "nll"), torch.zeros(()))
        if s.ewc:
            held = held + s.ewc * sum(
                weighted_squared_norm(p.A, p.B, F_OI, p.scale) for p, F_OI in zip(pairs, fisher, strict=True)
            )
        optimizer.zero_grad()
        if s.clip and held.requires_grad:
            nll = torch.autograd.grad(terms["nll"], trained, retain_graph=True)
            kept = torch.autograd.grad(held, trained)
            sizes = [float(torch.stack([g.norm() for g in gs]).norm()) for gs in (nll, kept)]
            norms.append(sizes)
            shrink = min(1.0, s.clip * sizes[0] / max(sizes[1], 1e-12))
            for weight, a, b in zip(trained, nll, kept, strict=True):
                weight.grad = a + shrink * b
        else:
            (terms["nll"] + held).backward()
        limit = s.max_norm or math.inf
        norms.append([float(torch.nn.utils.clip_grad_norm_(trained, limit))])
        optimizer.step()
    if s.shrink != 1:
        with torch.no_grad():
            for pair in pairs:
                pair.B.mul_(s.shrink)
    sizes = sorted(n[-1] for n in norms if len(n) == 1)
    seconds = time.process_time() - start
    return {**measured(loaded, model, teacher), "steps": steps, "seconds": seconds,
            "norm": sizes[len(sizes) // 2], "clipped": sum(n > 1 for n in sizes) / len(sizes)}  # fmt: skip


@torch.no_grad()
def predicted(model: Any, found: Sequence[Row]) -> Iterator[tuple[Row, Tensor]]:
    """Each row with its next-token log-probabilities, T - 1 x V."""
    for start in range(0, len(found), 20):
        part = found[start : start + 20]
        logits_BTV = model(input_ids=padded(part)[0], use_cache=False).logits.float()
        for row, logits_TV in zip(part, logits_BTV, strict=True):
            yield row, logits_TV[: len(row.input_ids) - 1].log_softmax(-1)


@torch.no_grad()
def measured(loaded: Loaded, model: Any, teacher: Teacher) -> dict[str, Any]:
    """Task and general, item by item."""
    model.eval()
    task, general = [], []
    for row, p_TV in predicted(model, loaded.answers):
        labels_T = torch.tensor(row.labels)[1:]
        own_T = labels_T != IGNORED
        right = p_TV[own_T].argmax(-1) == labels_T[own_T]
        nll = -p_TV[own_T].gather(1, labels_T[own_T][:, None]).sum()
        task.append([float(nll), int(own_T.sum()), int(right.all()), int(right.sum())])
    for row, p_TV in predicted(model, loaded.general):
        labels_T = torch.tensor(row.labels)[1:]
        own_T = labels_T != IGNORED
        nll = -p_TV[own_T].gather(1, labels_T[own_T][:, None]).sum()
        kl = divergence(teacher(row)[own_T], p_TV[own_T], "base_to_tuned").sum()
        general.append([float(nll), int(own_T.sum()), float(kl)])
    found = {"task": task, "general": general}
    return found | ({"right": right_answers(loaded, model)} if loaded.items else {})


def right_answers(loaded: Loaded, model: Any) -> list[int]:
    """Whether the greedy answer to each item passes its check."""
    tokenizer, right = loaded.tokenizer, []
    prompts = [chat(item.turns) for item in loaded.items]
    for start in range(0, len(prompts), 140):
        batch = tokenizer(prompts[start : start + 140], return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**batch, do_sample=False, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        chosen = loaded.items[start : start + 140]
        right += [int(passes(item.check, text)) for item, text in zip(chosen, texts, strict=True)]
    return right


def axes_of(run: dict[str, Any]) -> dict[str, Items]:
    """Task and general as items: percent (or minus NLL, nats a token), more is better; and the KL."""
    right = run.get("right")
    return {
        "task": Items.of([100.0 * t[2] for t in run["task"]] if right else [[-t[0], t[1]] for t in run["task"]]),
        "general": Items.of([100.0 * r for r in right] if right else [[-g[0], g[1]] for g in run["general"]]),
        "kl": Items.of([[g[2], g[1]] for g in run["general"]]),
    }


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--world", choices=list(RECIPES), default="lab1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, required=True, help="JSON lines of finished runs; kept and added to.")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--against", choices=list(SETTINGS), default="selfaug 2", help="Setting of the differences.")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in args.runs.read_text().splitlines()] if args.runs.exists() else []
    recipe = RECIPES[args.world]
    loaded: Loaded | None = None
    for seed in range(args.seeds):
        for name in ["base", *args.only] if seed == 0 else args.only:
            about = [args.world, name, seed]
            if any(run["about"] == about for run in done):
                continue
            loaded = loaded or kept_world(args.world, recipe, args.shared, args.runs.with_suffix(f".{args.world}"))
            if name == "base":
                run = measured(loaded, loaded.model(), Teacher(loaded))
            else:
                run = train(loaded, SETTINGS[name], seed, recipe)
            done.append({"about": about, **run})
            with args.runs.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            shown = ", ".join(f"{what} {value(items):.4g}" for what, items in axes_of(run).items())
            seconds, norm, clipped = (run.get(k, 0.0) for k in ("seconds", "norm", "clipped"))
            print(f"{name}, seed {seed}: {shown}; {seconds:.0f} s; norm {norm:.2g}, clipped {clipped:.0%}", flush=True)
    show([run for run in done if run["about"][0] == args.world], args.against)


def show(runs: list[dict[str, Any]], against: str) -> None:
    """Means over seeds, and differences from one setting: the same seeds and items, 95 % intervals."""
    found: dict[str, dict[int, dict[str, Items]]] = {}
    for run in runs:
        _, name, seed = run["about"]
        found.setdefault(name, {})[seed] = axes_of(run)
    lines = []
    for name, by_seed in found.items():
        means = [
            sum(value(a[what]) or 0.0 for a in by_seed.values()) / len(by_seed) for what in ("task", "general", "kl")
        ]
        cells = [name, str(len(by_seed)), *(f"{mean:.4g}" for mean in means)]
        common = [seed for seed in by_seed if seed in found.get(against, {})]
        for what in ("task", "general"):
            pairs = [(found[against][seed][what], by_seed[seed][what]) for seed in common]
            d = difference(pairs, shared_items=True) if pairs and name not in ("base", against) else None
            cells.append(
                "" if d is None or d.interval is None else f"{d.value:+.3g} [{d.interval[0]:.3g}, {d.interval[1]:.3g}]"
            )
        lines.append(cells)
    print(table(["setting", "seeds", "task", "general", "KL", f"task - {against}", f"general - {against}"], lines))


if __name__ == "__main__":
    main()
