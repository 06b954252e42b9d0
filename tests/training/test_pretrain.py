"""Pretraining through the trainer: golden losses, exact repetition, a stock model, a learner's numbers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from limner.cli.main import main
from limner.config.pretrain import PretrainConfig
from limner.models.gpt import GPTConfig, GPTModel
from limner.training.pretrain_task import PretrainTask
from limner.training.trainer import train

GOLDEN = Path(__file__).with_name("golden_pretrain_losses.json")

SMALL = {
    "corpus": "tiny", "tokenizer": "byte", "context_length": 32, "width": 32, "num_heads": 4, "num_layers": 2,
    "batch_size": 4, "lr": 3e-3, "device": "cpu", "precision": "fp32", "threads": 1, "eval_iters": 2,
}  # fmt: skip


def pretrain(folder: Path, name: str = "run", **settings):
    config = PretrainConfig(
        **(SMALL | {"runs_dir": folder, "name": name, "cache_dir": folder / "cache"} | settings)
    )
    return train(PretrainTask(config), config, "pretrain", "tiny", quiet=True)


def events(result, type: str) -> list[dict]:
    return [event for event in result.run.events() if event["type"] == type]


def losses(result) -> list[float]:
    return [event["loss"] for event in events(result, "metrics")]


def prepared(folder: Path, **settings) -> PretrainTask:
    task = PretrainTask(PretrainConfig(**(SMALL | {"cache_dir": folder / "cache"} | settings)))
    torch.manual_seed(0)
    task.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    return task


def test_losses_are_the_golden_ones_and_repeat_bit_for_bit(tmp_path):
    first = pretrain(tmp_path, "first", steps=20, eval_freq=10)
    second = pretrain(tmp_path, "second", steps=20, eval_freq=10)
    assert losses(first) == losses(second)
    if os.environ.get("LIMNER_RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(losses(first), indent=1) + "\n")
    # Another machine may sum in another order; a change of the model, the data or the loop is far larger.
    assert losses(first) == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-6)


def test_evaluation_and_samples_change_nothing(tmp_path):
    often = pretrain(tmp_path, "often", steps=8, eval_freq=2)
    never = pretrain(tmp_path, "never", steps=8, eval_freq=0)
    assert losses(often) == losses(never)


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=64, context_length=16, width=64, num_heads=4, num_layers=2, dropout=0.0))
    ids = torch.randint(64, (4, 17))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_the_finished_model_is_stock(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = pretrain(tmp_path, steps=6, eval_freq=3)
    stock, report = AutoModelForCausalLM.from_pretrained(result.run.model_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(result.run.model_path)
    ids = torch.tensor([tokenizer("The white goose")["input_ids"]])
    ours = GPTModel.from_pretrained(result.run.model_path).eval()
    assert_close(stock(ids).logits, ours(ids), atol=1e-5, rtol=1e-5)
    assert stock.config.eos_token_id == tokenizer.eos_token_id == 256


def test_the_log_tells_how_to_read_the_curve(tmp_path):
    result = pretrain(tmp_path, steps=6, eval_freq=3, sample_prompt=("The goose", "Ada"), sample_tokens=5)
    (start,) = events(result, "start")
    assert start["reference_lines"]["uniform"] == pytest.approx(math.log(257))
    assert 0 < start["reference_lines"]["bigram"] < start["reference_lines"]["unigram"] < math.log(257)
    assert sum(start["parameters_by_part"].values()) == start["parameters"]
    metrics = events(result, "metrics")[-1]
    assert metrics["tokens"] == 6 * 4 * 32
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2))  # a byte is a token here
    assert metrics["tokens_per_second"] > 0 and metrics["mfu"] > 0
    assert losses(result)[0] == pytest.approx(math.log(257), abs=0.1)
    samples = [event for event in events(result, "sample") if event["step"] == 6]
    assert [sample["prompt"] for sample in samples] == ["The goose", "Ada"]
    assert all(sample["text"] for sample in samples)


def test_bits_per_byte_compares_tokenizers(tmp_path):
    # A uniform guess costs log2(V) bits a token, whatever a token is; per byte it is spread over a token's bytes.
    task = prepared(tmp_path, tokenizer="bpe", vocab_size=512)
    assert task.text_facts["bytes_per_token"] > 2
    readings = task.readings(math.log(512))
    assert readings["perplexity"] == pytest.approx(512)
    assert readings["bits_per_byte"] == pytest.approx(9 / task.text_facts["bytes_per_token"])


def test_validation_is_a_fixed_sample_of_the_held_back_text(tmp_path):
    task = prepared(tmp_path)
    once, again = (list(task.validation_batches()) for _ in range(2))
    assert len(once) == 2
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a.tensors["ids"], b.tensors["ids"]) and a.num_targets == 4 * 32
    seen = bytes(once[0].tensors["ids"][0].tolist()).decode()
    text = (Path(__file__).parents[2] / "src/limner/data/tiny.txt").read_text()
    assert text.index(seen) >= 0.89 * len(text)
    training = task.batch(range(len(task.training)), seed=0).tensors["targets"]
    assert text.index(bytes(training[-1].tolist()).decode()) < 0.9 * len(text)


def test_initial_weights_can_be_a_finished_run(tmp_path):
    first = pretrain(tmp_path, "first", steps=4, eval_freq=0)
    more = dict.fromkeys(("width", "num_heads", "num_layers"))
    task = prepared(tmp_path, init_from=str(first.run.path), **more)
    assert torch.equal(task.model.head.weight, GPTModel.from_pretrained(first.run.model_path).head.weight)
    named = prepared(tmp_path, init_from="first", tokenizer="first", runs_dir=tmp_path, **more)
    assert torch.equal(named.model.head.weight, task.model.head.weight)
    assert named.tokenizer.vocab_size == 257
    with pytest.raises(ValueError, match="knows 257 tokens"):
        prepared(tmp_path, init_from=str(first.run.path), tokenizer="bpe", vocab_size=600, **more)


def test_a_scaled_step_is_a_step_with_scaled_gradients():
    from limner.training.optimizer import build_optimizer
    from limner.training.task import ParameterGroup

    results = []
    for inside in (True, False):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(40, 30)), torch.nn.Parameter(torch.randn(30))]
        optimizer = build_optimizer([ParameterGroup("all", list(zip("ab", parameters, strict=True)), 0.1, 0.1)])
        for factor in (0.01, 1.0, 0.3):  # one factor alone would not show: AdamW forgets a constant scale
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter) * (1.0 if inside else factor)
            optimizer.step(factor if inside else 1.0)
        results.append([parameter.detach() for parameter in parameters])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="--config is a preset"):
        PretrainConfig(config="huge")
    with pytest.raises(ValueError, match="leave out --width"):
        PretrainConfig(init_from="x", width=3)
    with pytest.raises(ValueError, match=r"gpt2-124m .trained weights from the hub. brings the model's shape"):
        PretrainConfig(config="gpt2-124m", num_layers=2)
    with pytest.raises(ValueError, match="--vocab-size is that of --tokenizer bpe"):
        PretrainConfig(vocab_size=600)


def words(folder: Path, *more: str) -> list[str]:
    flags = {name: str(value) for name, value in SMALL.items()} | {
        "runs_dir": str(folder), "name": "cli", "cache_dir": str(folder / "cache"), "steps": "4", "eval_freq": "2",
    }  # fmt: skip
    return [
        "pretrain",
        *(part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)),
        *more,
    ]


def test_command_line_pretrains_and_generates(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words(tmp_path, "--sample-prompt", "Ada", "--sample-prompt", "The goose")) == 0
    told = capsys.readouterr().err
    assert "5.55 knowing nothing (ln V)" in told and "feed-forward" in told
    assert "step 4/4  epoch 0.04" in told and "perplexity" in told and "    The goose|" in told
    arguments = ["generate", "cli", "--runs-dir", str(tmp_path), "--prompt", "The goose", "--max-tokens", "12"]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["tokens"]) == 12 and answer["ending"] == "length"
    assert answer["mean_logprob"] == pytest.approx(sum(t["logprob"] for t in answer["tokens"]) / 12)
    # Streamed text is the same text, and the log-probabilities are the stock model's own
    assert main(arguments) == 0
    assert capsys.readouterr().out == "The goose" + answer["text"] + "\n"
    ids = torch.tensor([list(b"The goose") + [token["id"] for token in answer["tokens"]]])
    logprobs = GPTModel.from_pretrained(tmp_path / "cli" / "model").eval()(ids).log_softmax(-1)
    expected = logprobs[0, 8:-1].gather(1, ids[0, 9:, None])[:, 0].tolist()
    assert [token["logprob"] for token in answer["tokens"]] == pytest.approx(expected, abs=1e-4)


def test_a_stopped_run_goes_on_by_its_name(tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file

    from limner.runs import Run, send_command

    monkeypatch.chdir(tmp_path)
    whole = pretrain(tmp_path, "whole", steps=6, eval_freq=3)
    folder = tmp_path / "cli"

    def stop_at_three(self, step, *_):
        if step == 3:
            send_command(folder, "stop")

    with monkeypatch.context() as patched:
        patched.setattr("limner.training.journal.Journal.training", stop_at_three)
        assert main(words(tmp_path, "--steps", "6", "--eval-freq", "3", "--force-new")) == 0
    assert Run(folder).state().step == 3
    capsys.readouterr()
    # It speaks as it stood when it was stopped
    wish = ["--prompt", "The goose", "--max-tokens", "3", "--temperature", "0", "--json"]
    assert main(["generate", "cli", "--runs-dir", str(tmp_path), *wish]) == 0
    told = capsys.readouterr()
    assert "(Run cli is stopped; this is its checkpoint cli/checkpoints/step-000003.)" in told.err
    model = GPTModel(GPTConfig(vocab_size=257, context_length=32, width=32, num_heads=4, num_layers=2)).eval()
    model.load_state_dict(load_file(folder / "checkpoints" / "step-000003" / "model.safetensors"))
    logprobs = model(torch.tensor([list(b"The goose")]))[0, -1].log_softmax(-1)
    first = json.loads(told.out)["tokens"][0]
    assert (first["id"], first["logprob"]) == (
        int(logprobs.argmax()),
        pytest.approx(float(logprobs.max()), abs=1e-4),
    )
    assert main(["pretrain", "--resume", "cli", "--runs-dir", str(tmp_path)]) == 0
    resumed = [event["loss"] for event in Run(folder).events() if event["type"] == "metrics"]
    assert resumed == losses(whole)


def test_a_file_of_settings_is_overridden_by_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "config: small\nwidth: 64\nnum-heads: 2\nnum_layers: 1\ncorpus: tiny\ntokenizer: byte\nsample-prompt: Ada\n"
    )
    assert main(["pretrain", "-c", "mine.yaml", "--plan", "--num-layers", "3"]) == 0
    assert "context 512, width 64, 2 heads, 3 blocks" in capsys.readouterr().out
    (tmp_path / "bad.yaml").write_text("wdith: 64\n")
    assert main(["pretrain", "-c", "bad.yaml", "--plan"]) == 1
    assert "wdith" in capsys.readouterr().err
    assert main(["pretrain", "-c", "none.yaml", "--plan"]) == 1
    assert "or a YAML file; not 'none.yaml'" in capsys.readouterr().err


def test_a_plan_needs_no_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("limner.data.corpora._fetched", lambda *_: (_ for _ in ()).throw(OSError("offline")))
    assert main(["pretrain", "--plan"]) == 0
    told = capsys.readouterr().out
    assert "30,531,584" in told and "Without the text: offline" in told


def test_what_generate_cannot_do_it_says(tmp_path, capsys):
    result = pretrain(tmp_path, steps=2, eval_freq=0)
    model = str(result.run.model_path)
    assert main(["generate", model, "--prompt", "x" * 40]) == 1
    assert "context holds 32; give a shorter prompt" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "nothing"), "--prompt", "x"]) == 1
    assert "There is no folder" in capsys.readouterr().err
    assert main(["generate", model, "--prompt", "x", "--stop", ""]) == 1
    assert "A --stop is empty" in capsys.readouterr().err
    assert main(["generate", "runn", "--prompt", "x", "--runs-dir", str(tmp_path)]) == 1
    assert "There is no run 'runn'" in capsys.readouterr().err


def test_a_short_text_makes_a_short_model(tmp_path, capsys):
    """Positions that no window reaches would stay random, and what is generated there too."""
    (tmp_path / "short.txt").write_text("Once upon a time there was a small model. It liked words.\n")
    result = pretrain(tmp_path, corpus=str(tmp_path / "short.txt"), context_length=500, steps=2, eval_freq=0)
    (start,) = events(result, "start")
    assert start["model"]["context_length"] == start["context"] == 50
    assert any("as long as the windows" in note for note in start["notes"])
    assert main(["generate", str(result.run.model_path), "--prompt", "Once", "--max-tokens", "90", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 47  # the last one needs no place in the context


def test_samples_leave_the_terminal_alone():
    told = PretrainTask(PretrainConfig(**SMALL)).tell_sample({"prompt": "Ada", "text": "\x1b[2J\n\x0e"})
    assert told == "    Ada|\\x1b[2J\u23ce\\x0e"


def test_a_context_of_one_token_is_a_bigram_model(tmp_path):
    result = pretrain(tmp_path, context_length=1, steps=2, eval_freq=0, sample_prompt=("", "The goose"))
    assert all(len(sample["text"].encode()) <= 3 for sample in events(result, "sample"))
    assert math.isfinite(losses(result)[-1])


def test_a_run_that_was_refused_can_be_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words(tmp_path, "--corpus", "nowhere")) == 1
    assert main(words(tmp_path)) == 0


def test_a_run_is_resumed_where_its_corpus_lies(tmp_path, monkeypatch, capsys):
    (tmp_path / "begun").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    Path("words.txt").write_text("to be or not to be\n" * 200)
    pretrain(Path("runs"), corpus="words.txt", steps=3)
    run = tmp_path / "begun" / "runs" / "run"
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--resume", str(run)]) == 1
    told = capsys.readouterr().err
    assert f"begun in {tmp_path / 'begun'}, where its corpus 'words.txt' lies" in told
