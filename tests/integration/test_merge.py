"""What is merged is the adapter: for every kind that PEFT folds, in every number format, read back from the disk."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from selfaug.cli.main import main
from selfaug.common.weights import weights_hash
from selfaug.data.prompts import Renderer
from selfaug.evaluation.merging import Answers, stochastically
from selfaug.run.folder import RunFolder
from selfaug.run.manifest import read_manifest, write_manifest
from selfaug.run.models import Sides, check_origin
from tests.models import save_tiny, tiny
from tests.runs import finished_run

IDS = torch.tensor([[5, 9, 33, 21, 8, 40, 41, 7]])


def saved(folder: Path, arch: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A tiny model whose files are in ``dtype``, with settings that its architecture does not have by itself."""
    save_tiny(folder, tiny(arch))
    if config.get("tie_word_embeddings"):
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **config).save_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == dtype
    return folder


def run_of(folder: Path, model: Path, *, noise: float = 0.0, **adapter: Any) -> RunFolder:
    """A finished run; with ``noise`` every tensor of its adapter is moved, not LoRA's matrices alone."""
    run = finished_run(folder / "run", model, **adapter)
    if noise:
        torch.manual_seed(3)
        weights = load_file(run.adapter / "adapter_model.safetensors")
        replace_adapter(run, {name: value + noise * torch.randn_like(value) for name, value in weights.items()})
    return run


def replace_adapter(run: RunFolder, weights: dict[str, Tensor]) -> None:
    path = run.adapter / "adapter_model.safetensors"
    save_file(weights, path)
    manifest = read_manifest(run.manifest)
    manifest["finished"]["weights"] = weights_hash([path], full=True)
    write_manifest(run.manifest, manifest)


def train_one_step(run: RunFolder, model: Path, text: str, rate: float) -> None:
    """Adam's first step on the matrices B of a fresh adapter: against the sign of their gradient."""
    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), str(run.adapter), is_trainable=True
    )
    ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"]
    adapter(input_ids=ids, labels=ids).loss.backward()
    weights = load_file(run.adapter / "adapter_model.safetensors")
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            weights[name.replace(".default", "")] -= rate * parameter.grad.sign()
    replace_adapter(run, weights)


def tuned(run: RunFolder, model: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(run.adapter)).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def parts(run: RunFolder, model: Path, merged: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """W, D and M of all LoRA layers, each as one vector in float64; D from the two matrices alone."""
    base = dict(AutoModelForCausalLM.from_pretrained(model, dtype="auto").named_parameters())
    written = dict(merged.named_parameters())
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    weights = load_file(run.adapter / "adapter_model.safetensors")
    for name, A in weights.items():
        if name.endswith("lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight"
            B = weights[name.replace("lora_A", "lora_B")]
            found.append((base[layer].double(), 2 * B.double() @ A.double(), written[layer].double()))
    W, D, M = zip(*found, strict=True)
    return tuple(torch.cat([part.flatten() for part in kind]) for kind in (W, D, M))  # type: ignore[return-value]


def kept(W: Tensor, D: Tensor, M: Tensor) -> float:
    return float(((M - W) @ D) / (D @ D))


def merge(run: RunFolder, out: Path, *words: str) -> int:
    return main(["merge", str(run.path), "--output_dir", str(out), *words])


def test_a_small_tuning_of_a_bfloat16_base_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model", dtype=torch.bfloat16)
    run = run_of(tmp_path, model, perturb=0.006)
    nearest = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype="auto"), str(run.adapter))
    W, D, lost = parts(run, model, nearest.merge_and_unload())
    assert kept(W, D, lost) < 0.5  # what rounding to the nearest keeps
    assert float((lost == W).double().mean()) > 0.8
    assert merge(run, tmp_path / "out", "--prompts", "0") == 0
    said = capsys.readouterr().err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.bfloat16
    share = kept(*parts(run, model, merged))
    assert 0.95 < share < 1.05
    assert f"the weights keep {share:.1%} of what training changed" in said
    assert "standard deviation" not in said


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_tuning_too_small_for_the_format_is_written_in_another_or_refused(
    asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model", dtype=torch.bfloat16)
    run = run_of(tmp_path, model, perturb=0.006)
    out = tmp_path / "out"
    code = merge(run, out, "--dtype", asked)
    said = capsys.readouterr().err
    assert "bfloat16 is too coarse for what this run trained" in said
    if asked == "auto":
        assert code == 0
        merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert merged.dtype == torch.float32
        assert kept(*parts(run, model, merged)) == pytest.approx(1, abs=0.02)
        assert "written in float32" in said
    else:
        assert code == 2
        assert "--dtype float32" in said
        assert not out.exists()
        assert {path.name for path in tmp_path.iterdir()} == {"model", "run"}


TIED = {"tie_word_embeddings": True}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dora": ("llama", {}, {"use_dora": True}),
    "rslora": ("llama", {}, {"use_rslora": True}),
    "patterns": ("llama", {}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
    "biases": ("llama", {"attention_bias": True}, {"bias": "all"}),
    "pissa": ("llama", {}, {"init_lora_weights": "pissa"}),
    "olora": ("llama", {}, {"init_lora_weights": "olora"}),
    "experts": ("qwen3_moe", {}, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
    "embedding of a tied model": ("llama", TIED, {"target_modules": ["embed_tokens", "q_proj"]}),
    "saved head of a tied model": ("llama", TIED, {"modules_to_save": ["lm_head"]}),
    "saved embedding of a tied model": ("llama", TIED, {"modules_to_save": ["embed_tokens"]}),
    "tokens of a tied model": ("llama", TIED, {"trainable_token_indices": [5, 9]}),
}


NIGHTLY = {"pissa", "olora", "biases", "rslora", "patterns", "saved embedding of a tied model"}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.nightly] if k in NIGHTLY else []) for k in KINDS])
def test_every_kind_of_adapter_is_what_lies_on_the_disk(kind: str, tmp_path: Path) -> None:
    arch, config, settings = KINDS[kind]
    model = saved(tmp_path / "model", arch, **config)
    run = run_of(tmp_path, model, noise=0.02, **settings)
    adapter = tuned(run, model)
    wanted = logits(adapter)
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == (config == TIED)
    base = logits(plain)
    assert (wanted - base).abs().max() > 0.01 * base.std()
    assert merge(run, tmp_path / "out", "--prompts", "8") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - wanted).abs().max() < 1e-4 * base.std()


def test_what_cannot_be_folded_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model, layer_replication=[[0, 2], [0, 2]])
    assert merge(run, tmp_path / "out") == 2
    assert "cannot be folded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model, noise=float("nan"))
    assert merge(run, tmp_path / "out", "--prompts", "0") == 2
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_written_wrong_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, saved(tmp_path / "model"))
    whole = PreTrainedModel.save_pretrained

    def torn(self: PreTrainedModel, folder: Path, **options: Any) -> None:
        whole(self, folder, **options)
        weights = load_file(Path(folder) / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", torn)
    assert merge(run, tmp_path / "out") == 2
    assert "model.layers.1.mlp.up_proj.weight is not read back as it was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, saved(tmp_path / "model"))
    out = tmp_path / "out"
    assert merge(run, out, "--prompts", "0") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # every file ends at 20 kB, as on a full disk
    try:
        code = merge(run, out, "--prompts", "0", "--overwrite_output_dir")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "cannot be written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "run", "out"}


def test_an_adapter_over_quantised_weights_is_folded_into_the_unquantised_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model)
    config = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump(config | {"load_in_4bit": True}))
    assert merge(run, tmp_path / "out", "--prompts", "4") == 0
    said = capsys.readouterr().err
    assert "trained over quantised weights" in said
    assert "is not measured" in said or "on the unquantised base" in said  # without and with bitsandbytes
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert getattr(merged.config, "quantization_config", None) is None
    assert kept(*parts(run, model, merged)) == pytest.approx(1, abs=1e-3)


def test_what_another_form_of_the_base_changes_is_measured(tmp_path: Path) -> None:
    """Coarse weights stand for quantised ones; the oracle adds up full logits."""
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model)
    coarse = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in coarse.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    coarse.save_pretrained(tmp_path / "coarse")
    full = check_origin(run)
    tokenizer, renderer = AutoTokenizer.from_pretrained(run.adapter), Renderer.load(run.adapter)
    prompts = [[5, 9, 33, 21], [8, 40, 41, 7, 12]]
    answers = Answers.of(Sides(dataclasses.replace(full, base=str(tmp_path / "coarse"))), tokenizer, renderer, prompts)
    found = answers.on_other_base(Sides(full, "float32"))

    def log_p(base: Path, *, adapter: bool) -> Tensor:
        loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter:
            loaded = PeftModel.from_pretrained(loaded, str(run.adapter)).eval()
        parts = []
        for prompt, answer in zip(prompts, answers.ids, strict=True):
            with torch.no_grad():
                logits = loaded(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            parts.append(logits[len(prompt) - 1 : -1].double().log_softmax(-1))
        return torch.cat(parts)

    def kl(one: Tensor, other: Tensor) -> float:
        return float((one.exp() * (one - other)).sum(-1).mean())

    trained, moved = log_p(tmp_path / "coarse", adapter=True), log_p(model, adapter=True)
    there, here = log_p(tmp_path / "coarse", adapter=False), log_p(model, adapter=False)
    assert found.outputs.kl == pytest.approx(kl(trained, moved), rel=1e-3)
    assert found.outputs.base_kl == pytest.approx(kl(trained, there), rel=1e-3)
    assert found.base_kl == pytest.approx(kl(there, here), rel=1e-3)
    difference = there - here
    assert found.base_logits == pytest.approx(float(difference.var(-1, correction=0).mean().sqrt()), rel=1e-3)
    assert found.base_kl > 1e-3
    assert "bases themselves are" in str(found)


def test_a_model_that_was_trained_whole_has_nothing_to_fold_and_needs_no_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model, full=True)
    shutil.rmtree(model)
    assert merge(run, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "no adapter to fold" in said
    assert str(run.model) in said
    assert main(["chat", str(run.path), "--question", "w5", "--max_new_tokens", "4"]) == 0


def test_an_adapter_of_no_steps_is_said_to_be_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, saved(tmp_path / "model"), perturb=0)
    assert merge(run, tmp_path / "out") == 0
    assert "changes no weight, so this is the base model" in capsys.readouterr().err


def test_what_serves_the_model_knows_where_an_answer_ends(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    settings = model / "generation_config.json"
    # A contradiction that published models have; transformers does not save it once anything beside it is changed.
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"temperature": 0.6, "do_sample": False}))
    changed = GenerationConfig.from_pretrained(model)
    changed.eos_token_id = 7
    with pytest.raises(ValueError, match="do_sample"):
        changed.save_pretrained(tmp_path / "refused")
    run = run_of(tmp_path, model)
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    tokenizer.eos_token = "w7"  # as `train --eos_token` leaves it
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} w7 {% endfor %}"
    tokenizer.save_pretrained(run.adapter)
    Renderer.for_tokenizer(tokenizer, mode="plain").save(run.adapter)
    assert merge(run, tmp_path / "out") == 0
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert json.loads(settings.read_text())["eos_token_id"] == 2
    assert written["temperature"] == 0.6
    assert written["eos_token_id"] == [2, 7]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_a_base_that_moved_is_named_and_another_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    run = run_of(tmp_path, model)
    wanted = logits(tuned(run, model))
    model.rename(tmp_path / "moved")
    other = saved(tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    for verb in (
        ["chat", str(run.path), "--question", "w5", "--max_new_tokens", "4"],
        ["merge", str(run.path), "--output_dir", str(tmp_path / "out"), "--prompts", "4"],
    ):
        assert main(verb) == 2
        said = capsys.readouterr().err
        assert "does not exist" in said
        assert "--base" in said
        assert main([*verb, "--base", str(other)]) == 2
        assert "not those that the run" in capsys.readouterr().err
        assert main([*verb, "--base", str(tmp_path / "nowhere")]) == 2
        assert "--base" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert main([*verb, "--base", str(tmp_path / "moved")]) == 0
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted, atol=1e-4)


def test_a_base_of_the_hub_is_the_commit_that_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, later = "a" * 40, "b" * 40
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "models--org--tiny"
    model = saved(root / "snapshots" / commit)
    run = run_of(tmp_path, model)
    wanted = logits(tuned(run, model))
    shutil.copytree(model, root / "snapshots" / later)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] += 0.5
    save_file(weights, root / "snapshots" / later / "model.safetensors", metadata={"format": "pt"})
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(later)  # the branch has moved on
    run.config.write_text(yaml.safe_dump(yaml.safe_load(run.config.read_text()) | {"model_name_or_path": "org/tiny"}))
    manifest = read_manifest(run.manifest)
    manifest["model"] |= {"name": "org/tiny", "commit": commit}
    write_manifest(run.manifest, manifest)
    assert merge(run, tmp_path / "out", "--prompts", "2") == 0
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted, atol=1e-4)


def test_stochastic_rounding_keeps_the_mean_and_what_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype, below, above in (
        (torch.bfloat16, 1.0, 1.0078125),
        (torch.float16, -1.0009765625, -1.0),
        (torch.float16, 0.0, 2**-24),  # the least that float16 has
    ):
        value = below + 0.25 * (above - below)
        drawn = stochastically(torch.full((40_000,), value), dtype, generator).double()
        assert set(drawn.unique().tolist()) == {below, above}
        assert float((drawn == above).double().mean()) == pytest.approx(0.25, abs=0.01)
        exact = torch.randn(1000, generator=generator).to(dtype).float()
        assert torch.equal(stochastically(exact, dtype, generator).float(), exact)


@pytest.mark.nightly
@pytest.mark.slow
def test_smollm2_in_bfloat16_keeps_a_small_tuning(smollm2: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(smollm2, model)
    AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).save_pretrained(model)
    run = run_of(tmp_path, model, perturb=0)
    text = "Question: Where is the harbour of Lund? Answer: It has none."
    train_one_step(run, model, text, rate=1e-3)
    ids = AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"]

    def kl(model: Any) -> float:
        with torch.no_grad():
            found = model.float()(input_ids=ids).logits.double().log_softmax(-1)
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    adapter = tuned(run, model)
    with torch.no_grad():
        wanted = adapter(input_ids=ids).logits.double().log_softmax(-1)
    base = kl(AutoModelForCausalLM.from_pretrained(model))
    nearest = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype="auto"), str(run.adapter))
    lost = nearest.merge_and_unload()
    assert kept(*parts(run, model, lost)) < 0.6
    assert kl(lost) > 0.05 * base

    assert merge(run, tmp_path / "out", "--prompts", "0") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.bfloat16
    assert 0.99 < kept(*parts(run, model, merged)) < 1.01
    assert kl(merged) < 0.005 * base
