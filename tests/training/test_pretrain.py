"""Pretraining through the trainer: golden losses, exact repetition, a stock model, a learner's numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from toy import without_fingerprints

from limner.cli.main import main
from limner.cli.pretrain import _configuration
from limner.config.pretrain import PretrainConfig
from limner.data.corpora import CORPORA, Corpus
from limner.models.gpt import GPTConfig, GPTModel
from limner.runs import Run, Status, create_run
from limner.tokenizer import get_tokenizer, train_bpe
from limner.training.pretrain_task import PretrainTask
from limner.training.trainer import train

GOLDEN = Path(__file__).with_name("golden_pretrain_losses.json")

SMALL = {
    "corpus": "tiny", "tokenizer": "byte", "context_length": 32, "width": 32, "num_heads": 4, "num_layers": 2,
    "batch_size": 4, "lr": 3e-3, "device": "cpu", "precision": "fp32", "threads": 1, "eval_iters": 2,
}  # fmt: skip


ITS_OWN = dict.fromkeys(("width", "num_heads", "num_layers"))
"""Over `SMALL`: a shape that weights bring."""


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


def test_a_run_is_evaluated_before_its_first_step_and_ten_times(tmp_path):
    result = pretrain(tmp_path, steps=20, sample_tokens=1, eval_iters=1)
    assert [event["step"] for event in events(result, "validation")] == list(range(0, 21, 2))
    assert events(result, "validation")[0]["eval_loss"] == pytest.approx(math.log(257), abs=0.1)
    # What a model knew before its training is no result of it, be it better.
    worse = pretrain(tmp_path, "worse", steps=2, eval_freq=1, sample_tokens=1, lr=30.0, warmup_steps=0)
    values = {event["step"]: event["eval_loss"] for event in events(worse, "validation")}
    assert min(values, key=lambda step: values[step]) == 0
    assert all(event["step"] > 0 for event in events(worse, "checkpoint"))


def test_a_run_that_was_stopped_at_its_beginning_is_not_evaluated_there_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("limner.training.steering.Steering.at_boundary", lambda self: "stop")
        assert pretrain(tmp_path, steps=4, sample_tokens=1).reason == "stopped"
    result = pretrain(tmp_path, steps=4, sample_tokens=1)
    assert [event["step"] for event in events(result, "validation")] == [0, 1, 2, 3, 4]
    assert losses(result) == losses(pretrain(tmp_path, "whole", steps=4, sample_tokens=1))


def test_save_keeps_the_numbered_states_only(tmp_path):
    result = pretrain(tmp_path, steps=6, eval_freq=1, save=True, checkpoint_freq=2, sample_tokens=1)
    assert [path.name for path in result.run.checkpoints()] == ["step-000002", "step-000004", "step-000006"]


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


def test_bits_per_byte_are_those_of_each_split(tmp_path):
    # The tokenizer learns the training text, of which a token is several bytes; of the other it is hardly one.
    text = tmp_path / "text.txt"
    text.write_text("the red circle " * 900 + "\n" + "QZX vJk wqP! " * 100)
    fields = {"corpus": str(text), "tokenizer": "bpe", "vocab_size": 300, "context_length": 8}
    result = pretrain(tmp_path, steps=2, eval_freq=2, **fields)
    (start,) = events(result, "start")
    # What coding a whole text costs, over its bytes (all characters are ASCII)
    for event, loss, split in (("metrics", "loss", "training"), ("validation", "eval_loss", "validation")):
        (*_, told) = events(result, event)
        bits = told[loss] / math.log(2) * start[f"{split}_tokens"]
        assert told["bits_per_byte"] == pytest.approx(bits / start[f"{split}_characters"])
        assert told["perplexity"] == pytest.approx(math.exp(told[loss]))
    assert start["training_bytes_per_token"] > 3 * start["validation_bytes_per_token"]


def test_bits_per_byte_of_documents_count_what_stands_between_them(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text("abc")
    task = prepared(tmp_path, corpus=str(tmp_path), context_length=4)
    for split, ids in (("training", task.training.ids), ("validation", task.validation.ids)):
        letters = int((ids < 256).sum())
        bits = task.readings(math.log(2), split)["bits_per_byte"]  # one bit a token
        assert bits == pytest.approx(len(ids) / letters) and bits > 1.2


def test_text_that_the_tokenizer_does_not_know_is_told(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "a": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    task = PretrainTask(PretrainConfig(**(SMALL | {"cache_dir": tmp_path, "tokenizer": str(folder)})))
    task.prepare_data(lambda *_: None)
    ids = [*task.training.ids, *task.validation.ids]
    (note,) = task.notes
    assert note.startswith(
        f"{ids.count(0):,} of {len(ids):,} tokens stand for text that the tokenizer does not know"
    )
    assert prepared(tmp_path).notes == []


def test_training_samples_and_generate_begin_alike(tmp_path, real_data, capsys):
    """With a SentencePiece tokenizer: a token of its own begins texts, and a decoded text loses its first space."""
    tokenizer = str(real_data / "models" / "stories260k")
    result = pretrain(tmp_path, steps=30, lr=1e-2, eval_freq=0, tokenizer=tokenizer, sample_tokens=12)
    task = prepared(tmp_path, tokenizer=tokenizer)
    assert task.training.ids[0] == task.validation.ids[0] == task.tokenizer.bos_id != task.tokenizer.eos_id
    assert task.notes == []
    model = GPTModel.from_pretrained(result.run.model_path).eval()
    sample = task.sample(model, {"prompt": "The goose", "temperature": 0, "max_tokens": 12})
    arguments = ["--prompt", "The goose", "--max-tokens", "12", "--temperature", "0", "--json"]
    assert main(["generate", str(result.run.model_path), *arguments]) == 0
    assert sample["text"] == json.loads(capsys.readouterr().out)["text"]
    assert sample["text"].startswith(" ")


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
    task = prepared(tmp_path, init_from=str(first.run.path), **ITS_OWN)
    assert torch.equal(task.model.head.weight, GPTModel.from_pretrained(first.run.model_path).head.weight)
    named = prepared(tmp_path, init_from="first", tokenizer="first", runs_dir=tmp_path, **ITS_OWN)
    assert torch.equal(named.model.head.weight, task.model.head.weight)
    assert named.tokenizer.vocab_size == 257


def test_initial_weights_keep_their_tokenizer(tmp_path):
    """Ids of another tokenizer, were it of the same size, mean other strings."""
    first = pretrain(tmp_path, "first", steps=2, eval_freq=0, tokenizer="bpe", vocab_size=300)
    source, other = first.run.model_path, tmp_path / "other"
    own = get_tokenizer(source)
    task = prepared(tmp_path, init_from=str(first.run.path), **ITS_OWN | {"tokenizer": None})
    assert task.tokenizer.fingerprint == own.fingerprint
    train_bpe(["zebras xylophones quizzes " * 50], 300).save(other)
    for tokenizer in (str(other), "byte"):
        with pytest.raises(ValueError, match=rf"trained with another tokenizer than '{tokenizer}'"):
            prepared(tmp_path, init_from=str(source), **ITS_OWN | {"tokenizer": tokenizer})
    for file in source.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no model whose tokenizer can be read"):
        prepared(tmp_path, init_from=str(source), **ITS_OWN | {"tokenizer": None})
    own.save(other)
    task = prepared(tmp_path, init_from=str(source), **ITS_OWN | {"tokenizer": str(other)})
    assert task.notes == [f"{source} has no tokenizer: that '{other}' is the right one is taken on trust."]
    train_bpe([Path(__file__).read_text()], 400).save(other)
    with pytest.raises(ValueError, match="knows 300 tokens, but its tokenizer has 400"):
        prepared(tmp_path, init_from=str(source), **ITS_OWN | {"tokenizer": str(other)})


def test_gpt2s_own_weights_keep_its_tokenizer(tmp_path, real_data, monkeypatch):
    folder = real_data / "tokenizers"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "tiktoken_cache"))
    rows = []
    for tokenizer in (None, "gpt2", str(folder / "gpt2")):  # tiktoken's and transformers' files of one vocabulary
        config = PretrainConfig(config="gpt2-124m", corpus="tiny", cache_dir=tmp_path, tokenizer=tokenizer)
        task = PretrainTask(config)
        task.prepare_data(lambda *_: None)
        rows.append(task.training.ids.tolist())
    assert rows[0] == rows[1] == rows[2] and task.tokenizer.vocab_size == 50257
    with pytest.raises(ValueError, match="weights of gpt2-124m were trained with another tokenizer than 'byte'"):
        PretrainTask(config.model_copy(update={"tokenizer": "byte"})).prepare_data(lambda *_: None)


def test_windows_are_named_without_a_list(tmp_path, capsys):
    result = pretrain(tmp_path, steps=2, eval_freq=0, stride=3)
    assert not (result.run.path / "examples.json").exists()
    assert main(["runs", "examples", "run", "2", "--runs-dir", str(tmp_path)]) == 0
    indices = events(result, "metrics")[-1]["examples"]
    assert capsys.readouterr().out.splitlines() == [f"tokens {3 * i} to {3 * i + 32}" for i in indices]


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
    with pytest.raises(ValueError, match="--init-from brings a tokenizer that the model knows"):
        PretrainConfig(init_from="x", tokenizer="bpe")
    with pytest.raises(ValueError, match="leave out --config small, and give the windows' length as"):
        PretrainConfig(init_from="x", config="small")
    with pytest.raises(ValueError, match="--save keeps all states and --save-total-limit only some"):
        PretrainConfig(save=True, save_total_limit=2)
    with pytest.raises(ValueError, match="--save keeps the states of all --checkpoint-freq steps"):
        PretrainConfig(save=True, checkpoint_freq=0)
    with pytest.raises(ValueError, match=r"--dropout is counted in 256ths: .* not 0\.001"):
        PretrainConfig(dropout=0.001)
    with pytest.raises(ValueError, match=r"leave out --width, --num-heads and the like"):
        PretrainConfig(init_from="x", activation="relu")


def test_a_validation_share_that_the_corpus_does_not_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(CORPORA, "own", lambda _: Corpus("own", ("some text " * 20,), ("another " * 20,)))
    assert prepared(tmp_path, corpus="own").text_facts["validation_characters"] == 160
    with pytest.raises(ValueError, match="'own' has a validation text of its own; leave out --val-split"):
        prepared(tmp_path, corpus="own", val_split=0.5)


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

    from limner.runs import send_command

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
    capsys.readouterr()
    assert main(["pretrain", "--resume", "cli", "--runs-dir", str(tmp_path), "--steps", "9"]) == 1
    assert f"begin a run from it: --init-from {folder / 'model'}." in capsys.readouterr().err


def test_a_stopped_run_can_be_given_another_length(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verdicts = iter(["go"] * 3 + ["stop"])
    with monkeypatch.context() as patched:
        patched.setattr("limner.training.steering.Steering.at_boundary", lambda self: next(verdicts))
        stopped = pretrain(tmp_path, steps=40, warmup_steps=0, schedule="linear", lr_floor=0.0)
    assert stopped.step == 3
    with pytest.raises(ValueError, match="--steps was 40, is 5"):  # by its name alone it goes on as it was
        pretrain(tmp_path, steps=5, warmup_steps=0, schedule="linear", lr_floor=0.0)
    resume = ["pretrain", "--resume", "run", "--runs-dir", str(tmp_path)]
    assert main([*resume, "--steps", "2"]) == 1
    assert "and 2 are asked for; give it more, or 3 to end it there" in capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "ended")
    assert main(["pretrain", "--resume", "ended", "--runs-dir", str(tmp_path), "--steps", "3"]) == 0
    assert Run(tmp_path / "ended").state().step == 3 and (tmp_path / "ended" / "model").is_dir()
    assert main([*resume, "--steps", "5", "--sample-prompt", "Ada"]) == 0
    rates = {event["step"]: event["learning_rate"] for event in events(stopped, "metrics")}
    assert rates == {step: pytest.approx(3e-3 * (1 - (step - 1) / (39 if step < 4 else 4))) for step in range(1, 6)}
    (note,) = events(stopped, "note")
    assert "--steps was 40, is 5" in note["text"] and stopped.run.config["config"]["steps"] == 5
    assert stopped.run.state().status is Status.COMPLETED
    (tmp_path / "mine.yaml").write_text("steps: 5")
    assert main([*resume, "-c", "mine.yaml"]) == 1
    assert "--resume goes on with the run's own settings; leave out --config mine.yaml" in capsys.readouterr().err


def test_prompts_that_are_given_replace_the_saved_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = PretrainConfig(**(SMALL | {"sample_prompt": ("AA",), "runs_dir": tmp_path}))
    create_run(tmp_path, "begun", "pretrain", json.loads(saved.model_dump_json()))
    (tmp_path / "mine.yaml").write_text("sample-prompt: [Ada, Bob]\n")
    for source in (["--resume", "begun", "--runs-dir", str(tmp_path)], ["-c", "mine.yaml"]):
        assert _configuration([*source, "--sample-prompt", "AA"]).sample_prompt == ("AA",)
    assert _configuration(["-c", "mine.yaml"]).sample_prompt == ("Ada", "Bob")


def test_a_file_of_settings_is_overridden_by_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "config: small\nwidth: 64\nnum-heads: 2\nnum_layers: 1\ncorpus: tiny\ntokenizer: byte\nsample-prompt: Ada\n"
    )
    assert main(["pretrain", "-c", "mine.yaml", "--plan", "--num-layers", "3"]) == 0
    assert "context 512, width 64, 2 heads, 3 blocks" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("wdith: 64\n")
    assert main(["pretrain", "-c", "bad.yaml", "--plan"]) == 1
    assert "wdith" in capsys.readouterr().err
    assert main(["pretrain", "-c", "none.yaml", "--plan"]) == 1
    assert "or a YAML file; not 'none.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("corpuss: tiny", "mine.yaml: there is no setting 'corpuss'; did you mean corpus?"),
        ("sample_prompt: 12", "--sample-prompt is 12; it should be a list."),
        ("batch_size: 0", "--batch-size is 0; it should be greater than or equal to 1."),
        ("batch_size: many", "--batch-size is 'many'; it should be an integer"),
        ("config: other.yaml", "not another file; 'other.yaml' is none."),
    ],
)
def test_what_is_wrong_in_a_file_of_settings_is_said_in_a_sentence(tmp_path, capsys, monkeypatch, settings, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(settings)
    assert main(["pretrain", "-c", "mine.yaml", "--plan"]) == 1
    assert told in capsys.readouterr().err


def test_every_field_of_the_model_can_be_set(capsys):
    own = {"feed_forward_width": 50, "activation": "relu", "norm_epsilon": 1e-6}
    task = PretrainTask(PretrainConfig(**(SMALL | own)))
    assert asdict(task.model_config(257)).items() > own.items()


@pytest.mark.parametrize("setting", ["runs_dir", "cache_dir", "checkpoints_dir"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, setting):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=f"--{setting.replace('_', '-')} .*file/x cannot be made .*name another folder"
    ):
        pretrain(tmp_path, **{setting: tmp_path / "file" / "x"})
    assert not list(tmp_path.glob("run*"))


def test_ctrl_c_while_the_corpus_is_prepared_stops_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(PretrainTask, "prepare_data", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words(tmp_path)) == 130
    assert Run(tmp_path / "cli").state().status is Status.STOPPED
    assert "Traceback" not in (tmp_path / "cli" / "log.txt").read_text()
    assert main(words(tmp_path)) == 0


def test_a_plan_needs_no_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("limner.data.corpora._fetched", lambda *_: (_ for _ in ()).throw(OSError("offline")))
    assert main(["pretrain", "--plan"]) == 0
    told = capsys.readouterr()
    assert "30,531,584" in told.err and "Without the text: offline" in told.err
    plan = json.loads(told.out)
    assert plan["parameters"]["total"] == 30_531_584 and "steps" not in plan


@pytest.fixture
def planned(tmp_path, capsys, monkeypatch):
    """What `limner pretrain --plan` tells; the machine's speed is not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("limner.device.matrix_flops", lambda *_: 1e12)

    plans: list[dict] = []

    def tell(*arguments: str) -> str:
        assert main(["pretrain", "--plan", "--precision", "fp32", *arguments]) == 0
        told = capsys.readouterr()
        plans.append(json.loads(told.out))
        return told.err

    tell.plans = plans
    return tell


def test_a_plan_tells_programs_what_it_tells_persons(tmp_path, planned):
    result = pretrain(tmp_path, steps=3, eval_freq=0)
    (start,) = events(result, "start")
    flags = {name: str(value) for name, value in (SMALL | {"steps": 3}).items() if name != "precision"}
    told = planned(*(part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)))
    (plan,) = planned.plans
    assert plan["parameters"] == start["parameters_by_part"] | {"total": start["parameters"]}
    assert (plan["steps"], plan["tokens"], plan["windows"]) == (3, 3 * 4 * 32, start["examples"])
    assert f"{plan['windows']:,} windows of 32 tokens; 3 steps, 384 tokens; at least" in told
    assert plan["memory"]["weights_mb"] == round(start["memory_estimate"]["weights"] / 2**20, 1)


def test_without_the_text_a_plan_knows_the_tokenizers_size(planned, capsys, monkeypatch):
    monkeypatch.setattr("limner.data.corpora._fetched", lambda *_: (_ for _ in ()).throw(OSError("offline")))
    get_tokenizer("byte").save("own")
    for tokenizer, size in {"gpt2": 50257, "byte": 257, "bpe": 4096, "own": 257}.items():
        assert f"{'head':<20}{size * 256:>13,}" in planned("--tokenizer", tokenizer)
    assert main(["pretrain", "--plan", "--corpus", "nonesuch.txt"]) == 1
    assert "no file or folder 'nonesuch.txt' here" in capsys.readouterr().err


def test_a_plan_of_a_models_training_is_of_its_shape(tmp_path, planned):
    source = str(pretrain(tmp_path, "first", steps=1, context_length=64).run.path)
    told = planned("--corpus", "tiny", "--tokenizer", "byte", "--init-from", source, "--context-length", "32")
    assert "context 64, width 32, 4 heads, 2 blocks" in told and "windows of 32 tokens" in told
    task = prepared(tmp_path, init_from=source, **dict.fromkeys(("width", "num_heads", "num_layers")))
    assert task.flops_per_unit == 6 * (task.plan.parameters - (257 + 64) * 32) + 12 * 2 * 32 * 32


def test_a_batch_beyond_the_corpus_is_counted_as_it_comes(tmp_path):
    said: list[str] = []
    config = PretrainConfig(**(SMALL | {"batch_size": 1000, "epochs": 3, "cache_dir": tmp_path, "compile": False}))
    task = PretrainTask(config, say=said.append)
    task.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    assert (task.total_steps(), task.total_tokens()) == (3, 3 * len(task.training) * 32)
    assert any("a batch holds these, not 1,000" in line for line in said)
    # An epoch's last step is short; accumulation and half epochs count too.
    task.config = config.model_copy(update={"batch_size": 4, "grad_accum_steps": 3, "epochs": 1.5})
    seen = sum(len(task._order().step_examples(step)) for step in range(task.total_steps()))
    assert task.total_tokens() == seen * 32


def test_compiling_is_for_the_shape_that_comes(tmp_path, monkeypatch):
    shapes: list[tuple[int, int]] = []
    monkeypatch.setattr(GPTModel, "compile_training", lambda self, *shape: shapes.append(shape))
    monkeypatch.setattr("limner.training.pretrain_task.require_compiler", lambda: None)
    task = prepared(tmp_path, batch_size=1000, compile=True)
    assert shapes == [(len(task.training), 32)]


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


def test_the_name_of_another_run_is_looked_for_where_the_run_was_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = pretrain(Path("runs"), "first", steps=2, eval_freq=0)
    settings = first.run.config["config"] | {"name": "second", "tokenizer": "first"}
    second = create_run("runs", "second", "pretrain", settings)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert main(["pretrain", "--resume", f"../{second.path}"]) == 1
    assert f"begun in {tmp_path}, where its tokenizer 'first' lies" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--resume", "second"]) == 0


def test_a_run_that_an_earlier_version_was_to_save_whole_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verdicts = iter(["go"] * 2 + ["stop"])
    with monkeypatch.context() as patched:
        patched.setattr("limner.training.steering.Steering.at_boundary", lambda self: next(verdicts))
        run = pretrain(tmp_path, steps=6, save=True).run
    body = json.loads((run.path / "config.json").read_text())
    body["config"]["save_total_limit"] = 10**9
    (run.path / "config.json").write_text(json.dumps(body | {"folder": "/elsewhere"}))
    assert main(["pretrain", "--resume", "run", "--runs-dir", str(tmp_path), "--steps", "3"]) == 0
    assert Run(run.path).config["folder"] == "/elsewhere"  # where it was begun, whoever gives it another length


def stopped(monkeypatch, folder: Path, step: int = 2, **settings) -> Run:
    """A run that was stopped after so many of its steps."""
    verdicts = iter(["go"] * step + ["stop"])
    with monkeypatch.context() as patched:
        patched.setattr("limner.training.steering.Steering.at_boundary", lambda self: next(verdicts))
        return pretrain(folder, steps=6, eval_freq=3, **settings).run


BPE = {"tokenizer": "bpe", "vocab_size": 300}


@pytest.mark.parametrize(
    ("settings", "edited", "changed"),
    [
        (BPE, "he stories of a village\n" * 500, "training text and the validation text"),
        ({}, "he stories of the village\n" * 499 + "he stories of THE village\n", "validation text"),
        ({}, "he stories of one village\n" * 500, "training text and the validation text"),
    ],
)
def test_a_run_whose_text_has_changed_does_not_go_on(tmp_path, monkeypatch, settings, edited, changed):
    text = tmp_path / "text.txt"
    text.write_text("he stories of the village\n" * 500)
    run = stopped(monkeypatch, tmp_path, corpus=str(text), **settings)
    text.write_text(edited)
    with pytest.raises(ValueError, match=rf"^The {changed} changed since these weights were saved"):
        pretrain(tmp_path, steps=6, eval_freq=3, corpus=str(text), **settings)
    assert not run.model_path.exists()
    # An earlier version wrote down only how much it was.
    without_fingerprints(run.checkpoints()[-1])
    text.write_text("he stories of the village\n" * 600)
    with pytest.raises(ValueError, match=r"^The training text and the validation text changed since"):
        pretrain(tmp_path, steps=6, eval_freq=3, corpus=str(text), **settings)
    text.write_text("he stories of the village\n" * 500)
    assert pretrain(tmp_path, steps=6, eval_freq=3, corpus=str(text), **settings).reason == "completed"


def test_a_change_of_a_folders_tokenizer_is_found_too(tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    train_bpe(["abab" * 100], 258).save(folder)
    stopped(monkeypatch, tmp_path, tokenizer=str(folder))
    train_bpe(["xyxy" * 100], 258).save(folder)
    with pytest.raises(ValueError, match=r"^The tokenizer"):
        pretrain(tmp_path, steps=6, eval_freq=3, tokenizer=str(folder))


def test_a_trained_tokenizer_is_trained_once(tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text((Path(__file__).parents[2] / "src/limner/data/tiny.txt").read_text())
    whole = pretrain(tmp_path, "whole", corpus=str(text), steps=6, eval_freq=3, **BPE)
    run = stopped(monkeypatch, tmp_path, corpus=str(text), **BPE)
    own = get_tokenizer(run.path / "tokenizer")
    assert own.fingerprint == get_tokenizer(whole.run.model_path).fingerprint
    monkeypatch.setattr("limner.tokenizer.train_bpe", lambda *_: pytest.fail("trained again"))
    resumed = pretrain(tmp_path, corpus=str(text), steps=6, eval_freq=3, **BPE)
    assert losses(resumed) == losses(whole)
    assert {event["tokenizer"] for event in events(resumed, "start")} == {"bpe"}
    # And a checkpoint needs its text no more
    text.unlink()
    best = [event["path"] for event in events(resumed, "checkpoint") if event["best"]][-1]
    answers = []
    for model in (best, str(run.model_path)):
        assert main(["generate", model, "--prompt", "The goose", "--max-tokens", "5", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
    assert answers[0] == answers[1]


def test_an_unfinished_run_speaks_without_what_it_began_from(tmp_path, monkeypatch, capsys):
    first = pretrain(tmp_path, "first", steps=2, eval_freq=0, **BPE)
    own = ITS_OWN | {"tokenizer": None}
    run = stopped(monkeypatch, tmp_path, init_from=str(first.run.path), dropout=0.3, **own)
    words = ["--prompt", "The goose", "--max-tokens", "5", "--json", "--runs-dir", str(tmp_path)]
    told = []
    for _ in range(2):
        assert main(["generate", run.name, *words]) == 0
        told.append(json.loads(capsys.readouterr().out)["tokens"])
        shutil.rmtree(first.run.path, ignore_errors=True)
    assert told[0] == told[1]


def test_a_model_with_more_rows_than_tokens_can_be_sampled(tmp_path, capsys):
    folder, tokenizer = tmp_path / "padded", get_tokenizer("byte")
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=512, context_length=32, width=32, num_heads=2, num_layers=1))
    with torch.no_grad():
        model.head.weight[257:] *= 9  # these are drawn most often
    model.save_pretrained(folder, tokenizer.eos_id)
    tokenizer.save(folder)
    assert main(["generate", str(folder), "--prompt", "Once", "--max-tokens", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any(token["id"] > 256 for token in told["tokens"])
    assert {token["piece"] for token in told["tokens"] if token["id"] > 256} == {""}
    assert len(told["text"]) < 20
    assert main(["generate", str(folder), "--prompt", "Once", "--max-tokens", "20"]) == 0
    assert capsys.readouterr().out == "Once" + told["text"] + "\n"
    result = pretrain(tmp_path, steps=1, init_from=str(folder), **ITS_OWN | {"tokenizer": None})
    assert len(events(result, "sample")) == 2


def test_the_sample_prompt_is_short_in_any_script(tmp_path):
    from limner.training.pretrain_task import _first_words

    assert _first_words(["的" * 5000]) == "的" * 40
    assert _first_words(["One two\nthree four five six seven"]) == "One two three four five six"
    assert _first_words(["incomprehensibilities " * 9]) == "incomprehensibilities"
