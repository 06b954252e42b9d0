"""The loop against its oracles: an uninterrupted twin, one big batch, and a run's own log."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import ToyConfig, ToyTask

from limner import device as hardware
from limner.runs import Run, Status, create_run, send_command
from limner.training import checkpoints
from limner.training.journal import Journal
from limner.training.meter import Meter
from limner.training.opening import saved_settings
from limner.training.trainer import train


def run(config: ToyConfig, **task_settings):
    return train(ToyTask(config, **task_settings), config, "toy", "toy", quiet=True)


def stopped_at(step: int, config: ToyConfig):
    """Runs until it has come about so far, and is then stopped from outside."""
    folder = config.runs_dir / str(config.name)
    stopper = threading.Thread(target=lambda: (_wait_for_step(folder, step), send_command(folder, "stop")))
    stopper.start()
    stopped = run(config)
    stopper.join()
    return stopped


def weights(finished: Run) -> dict[str, torch.Tensor]:
    return load_file(finished.model_path / "model.safetensors")


def losses(finished: Run, type: str = "metrics", field: str = "loss") -> dict[int, float]:
    return {event["step"]: event[field] for event in finished.events() if event["type"] == type}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_log_is_numbered_and_tells_the_run(tmp_path: Path) -> None:
    result = run(ToyConfig(runs_dir=tmp_path, name="one"))
    events = result.run.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    start = next(event for event in events if event["type"] == "start")
    assert (start["total_steps"], start["steps_per_epoch"], start["examples_per_step"]) == (12, 7, 8)
    assert start["parameters"] == start["trained_parameters"] == 8 * 16 + 16 + 16 * 3 + 3
    assert list(losses(result.run)) == list(range(1, 13))
    assert list(losses(result.run, "validation", "eval_loss")) == [4, 8, 12]
    assert result.run.state().status is Status.COMPLETED
    assert result.reason == "completed" and not result.run.state().resumable
    assert losses(result.run)[12] < losses(result.run)[1]


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    small = run(ToyConfig(runs_dir=tmp_path, name="small", dropout=0.0, batch_size=2, accumulation=4))
    big = run(ToyConfig(runs_dir=tmp_path, name="big", dropout=0.0, batch_size=8, accumulation=1))
    assert list(losses(small.run).values()) == pytest.approx(list(losses(big.run).values()), rel=1e-6)
    for name, tensor in weights(small.run).items():
        torch.testing.assert_close(tensor, weights(big.run)[name], rtol=1e-5, atol=1e-6)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = run(ToyConfig(runs_dir=tmp_path, name="whole"))
    config = ToyConfig(runs_dir=tmp_path, name="halves", pace=0.02)
    first = stopped_at(5, config)
    assert first.reason == "stopped" and first.run.state().resumable
    assert first.run.state().status is Status.STOPPED
    second = run(config)  # the same command again
    assert second.reason == "completed" and second.run.path == first.run.path
    assert same(weights(whole.run), weights(second.run))
    assert losses(whole.run) == losses(second.run)
    assert {event["attempt"] for event in second.run.events()} == {1, 2}


def test_pause_sample_note_checkpoint_and_resume_change_nothing(tmp_path: Path) -> None:
    whole = run(ToyConfig(runs_dir=tmp_path, name="whole"))
    folder = tmp_path / "steered"

    def steer() -> None:
        _wait_for_step(folder, 3)
        send_command(folder, "pause")
        _wait_for(folder, "paused")
        send_command(folder, "sample", prompt="hello")
        send_command(folder, "sample")
        send_command(folder, "note", text="a remark")
        send_command(folder, "checkpoint")
        send_command(folder, "pause")
        _wait_for(folder, "note")
        assert Run(folder).state().status is Status.PAUSED
        time.sleep(0.5)
        send_command(folder, "resume")

    steering = threading.Thread(target=steer)
    steering.start()
    result = run(ToyConfig(runs_dir=tmp_path, name="steered", pace=0.02))
    steering.join()
    assert same(weights(whole.run), weights(result.run))
    events = result.run.events()
    answered = [event for event in events if "command" in event]
    kinds = [event["type"] for event in answered if "checkpoint" not in (event["type"], event.get("name"))]
    assert kinds == ["paused", "sample", "command", "note", "command", "resumed"]
    refused = [event["message"] for event in answered if event.get("ok") is False]
    assert refused == ["A sample needs a prompt.", "the run is paused already"]
    paused = next(event for event in events if event["type"] == "paused")
    after = next(e for e in events if e["type"] == "metrics" and e["step"] == paused["step"] + 1)
    assert after["eta_seconds"] < 2.0, "paused time must count in no rate"


class SteeredTask(ToyTask):
    """Sends itself commands in its third step, all at once."""

    def __init__(self, config: ToyConfig, *commands: tuple[str, dict]) -> None:
        super().__init__(config)
        self.commands = commands

    def loss(self, model, tensors):
        if model.training and self.calls == 2 * self.config.accumulation:
            for name, arguments in self.commands:
                send_command(self.run_path, name, **arguments)
        return super().loss(model, tensors)

    def sample(self, model, arguments):
        return {"text": "a" * arguments["length"]}


def steered(tmp_path: Path, *commands: tuple[str, dict]):
    config = ToyConfig(runs_dir=tmp_path, name="-".join(name for name, _ in commands))
    return train(SteeredTask(config, *commands), config, "toy", "toy", quiet=True)


def test_commands_that_come_together_are_all_answered(tmp_path: Path) -> None:
    resumed = steered(tmp_path, ("pause", {}), ("resume", {}), ("note", {"text": "after"}))
    assert resumed.reason == "completed"
    kinds = [event["type"] for event in resumed.run.events() if "command" in event]
    assert kinds == ["paused", "resumed", "note"]
    stopped = steered(tmp_path, ("pause", {}), ("stop", {}), ("checkpoint", {}))
    assert stopped.reason == "stopped" and stopped.step == 3
    answered = [event for event in stopped.run.events() if "command" in event]
    assert [event["type"] for event in answered] == ["paused", "stopping", "command"]
    assert answered[-1]["message"] == "the run is stopping"


def test_a_senseless_request_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    odd = "caf\udce9"  # as a terminal in Latin-1 gives it
    result = steered(tmp_path, ("sample", {"length": None}), ("note", {"text": odd}), ("sample", {"length": 3}))
    assert result.reason == "completed"
    answered = [event for event in result.run.events() if "command" in event]
    assert [event["type"] for event in answered] == ["command", "note", "sample"]
    assert answered[0]["message"].startswith("TypeError: ")
    assert answered[1]["text"] == "caf?" and answered[2]["text"] == "aaa"


def test_what_was_asked_of_a_dead_process_is_refused(tmp_path: Path) -> None:
    config = ToyConfig(runs_dir=tmp_path, name="r", pace=0.02)
    stopped_at(2, config)
    stale = {"id": "stale", "name": "stop", "arguments": {}, "time": 1e9}
    (tmp_path / "r" / "commands" / "0.json").write_text(json.dumps(stale))
    note = send_command(tmp_path / "r", "note", text="to this one")
    result = run(config)
    assert result.reason == "completed"
    answered = {event["command"]: event for event in result.run.events() if "command" in event}
    assert answered["stale"]["ok"] is False and answered["stale"]["name"] == "stop"
    assert answered[note]["type"] == "note"


def test_a_checkpoint_on_a_full_disk_is_refused_within_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, real = threading.Event(), checkpoints.save_file

    def save_file(tensors: dict, path: Path) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    folder = tmp_path / "full"

    def person() -> None:
        _wait_for_step(folder, 2)
        send_command(folder, "pause")
        _wait_for(folder, "paused")
        full.set()
        asked = send_command(folder, "checkpoint")
        _until(lambda: any(event.get("command") == asked for event in Run(folder).events()))
        full.clear()
        send_command(folder, "resume")

    helper = threading.Thread(target=person)
    helper.start()
    result = run(ToyConfig(runs_dir=tmp_path, name="full", pace=0.02, eval_every=100, checkpoint_every=100))
    helper.join()
    events = result.run.events()
    refused = [event for event in events if event.get("ok") is False]
    assert [event["name"] for event in refused] == ["checkpoint"] and "disk is full" in refused[0]["message"]
    assert [event["type"] for event in events].count("paused") == 1 and result.reason == "completed"


def test_a_full_disk_while_samples_are_taken_ends_no_run(tmp_path: Path) -> None:
    class Full(ToyTask):
        def probes(self, model):
            raise OSError(errno.ENOSPC, "No space left on device")

    config = ToyConfig(runs_dir=tmp_path, name="probes")
    result = train(Full(config), config, "toy", "toy", quiet=True)
    events = result.run.events()
    assert result.reason == "completed" and not [e for e in events if e["type"] == "sample"]
    told = [event for event in events if event["type"] == "warning"]
    assert told and all(event["kind"] == "disk_full" for event in told)


def test_fp16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = hardware.Choice(torch.device("cpu"), torch.float16, 1, "as asked")
    monkeypatch.setattr(hardware, "choose", lambda *_: half)
    with pytest.raises(ValueError, match="train in bf16 or fp32"):
        run(ToyConfig(runs_dir=tmp_path, name="half"))
    assert not list(tmp_path.iterdir())


def test_nonfinite_steps_are_not_applied_and_then_pause(tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    stopper = threading.Thread(target=lambda: (_wait_for(folder, "paused"), send_command(folder, "stop")))
    stopper.start()
    result = run(ToyConfig(runs_dir=tmp_path, name="nan", poison_steps=(1, 4, 5, 6)))
    stopper.join()
    events = result.run.events()
    bad = [event for event in events if event.get("kind") == "nonfinite"]
    assert [event["step"] for event in bad] == [1, 4, 5, 6]
    assert len(bad[0]["examples"]) == 8 and set(bad[0]["layer_norms"]) == {
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    }
    assert next(e for e in events if e["type"] == "paused")["step"] == 7
    assert losses(result.run)[2] == "NaN" and isinstance(losses(result.run)[3], float)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    config = ToyConfig(runs_dir=tmp_path, name="early", lr=30.0, steps=60, eval_every=2, patience=2)
    result = run(config)
    values = losses(result.run, "validation", "eval_loss")
    assert result.reason == "early stopping" and result.step < 60
    best = min(values, key=lambda step: values[step])
    assert result.step > best
    task = ToyTask(config)
    task.prepare(torch.device("cpu"), torch.float32, lambda *_: None)
    task.model.load_state_dict(weights(result.run))
    task.model.eval()
    with torch.no_grad():
        total = sum(float(task.loss(task.model, b.tensors)) for b in task.validation_batches())
    assert total / 16 == pytest.approx(values[best], rel=1e-5)


def test_changed_settings_are_refused_and_force_new_starts_beside(tmp_path: Path) -> None:
    stopped_at(2, ToyConfig(runs_dir=tmp_path, name="r", pace=0.02))
    with pytest.raises(ValueError, match=r"--lr was 0\.01, is 0\.02"):
        run(ToyConfig(runs_dir=tmp_path, name="r", pace=0.02, lr=0.02))
    beside = run(ToyConfig(runs_dir=tmp_path, name="r", lr=0.02, force_new=True))
    assert beside.run.name == "r-2"
    with pytest.raises(ValueError, match="complete"):
        run(ToyConfig(runs_dir=tmp_path, name="r-2", lr=0.02))


def test_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_loss, accuracy"):
        run(ToyConfig(runs_dir=tmp_path, name="m", metric_for_best_model="acuracy"))
    assert Run(tmp_path / "m").state().status is Status.FAILED


def _wait_for_step(folder: Path, step: int) -> None:
    _until(lambda: any(e["step"] >= step for e in Run(folder).events()))


def _wait_for(folder: Path, type: str) -> None:
    _until(lambda: any(e["type"] == type for e in Run(folder).events()))


def _until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_a_resumed_run_keeps_its_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` measures the machine; a resumed attempt must not come to another answer than the first."""
    monkeypatch.setattr("limner.device.bf16_speedup", lambda: 9.0)
    stopped_at(2, ToyConfig(runs_dir=tmp_path, name="r", pace=0.02, precision="auto"))
    monkeypatch.setattr("limner.device.bf16_speedup", lambda: 1.0)
    result = run(ToyConfig(runs_dir=tmp_path, name="r", pace=0.02, precision="auto"))
    starts = [event["precision"] for event in result.run.events() if event["type"] == "start"]
    assert starts == ["bfloat16", "bfloat16"]


def test_muon_trains_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run(ToyConfig(runs_dir=tmp_path, name="whole", optimizer="muon"))
    config = ToyConfig(runs_dir=tmp_path, name="halves", pace=0.02, optimizer="muon")
    assert stopped_at(5, config).reason == "stopped"
    assert same(weights(run(config).run), weights(whole.run))
    assert losses(whole.run)[12] < losses(whole.run)[1]
    assert not same(weights(whole.run), weights(run(ToyConfig(runs_dir=tmp_path, name="adamw")).run))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_does_not_end_a_run_by_way_of_its_log(tmp_path: Path) -> None:
    journal = Journal(tmp_path, quiet=True)
    assert journal._log is not None
    journal._log.close()
    journal._log = open("/dev/full", "w")  # noqa: SIM115  the journal closes it
    journal.say("a line for nobody")
    journal.close()


def test_checkpoints_of_another_run_are_not_gone_on_from(tmp_path: Path) -> None:
    states = tmp_path / "states"
    done = run(ToyConfig(runs_dir=tmp_path, name="one", checkpoints_dir=states))
    with pytest.raises(ValueError, match="holds the checkpoints of another run"):
        run(ToyConfig(runs_dir=tmp_path, name="one", checkpoints_dir=states, lr=1.0, force_new=True))
    with pytest.raises(ValueError, match=r"Run 'one' is complete.* another --checkpoints-dir"):
        run(ToyConfig(runs_dir=tmp_path, name="other", checkpoints_dir=states, lr=1.0))
    assert [path.name for path in tmp_path.iterdir() if (path / "config.json").is_file()] == ["one"]
    assert done.run.state().status is Status.COMPLETED


def test_a_queued_run_does_not_go_on_from_a_deleted_runs_checkpoints(tmp_path: Path) -> None:
    states = tmp_path / "states"
    run(ToyConfig(runs_dir=tmp_path, name="gone", checkpoints_dir=states)).run.delete()
    config = ToyConfig(runs_dir=tmp_path, name="queued", checkpoints_dir=states)
    queued = create_run(tmp_path, "queued", "toy", json.loads(config.model_dump_json()))
    for _ in range(2):
        with pytest.raises(ValueError, match="holds the checkpoints of another run"):
            run(config)
    assert not any(event["type"] == "start" for event in queued.events())


def test_checkpoints_elsewhere_are_found_from_anywhere_and_belong_to_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        monkeypatch.chdir(folder)
        stopped_at(2, ToyConfig(runs_dir=folder / "runs", name="r", pace=0.02, checkpoints_dir=Path("states")))
    others = sorted(path.name for path in (two / "states").iterdir())
    saved = saved_settings(str(one / "runs" / "r"), one / "runs", "toy")
    config = ToyConfig(**saved | {"resume": str(one / "runs" / "r")})
    assert run(config).reason == "completed"
    assert sorted(path.name for path in (two / "states").iterdir()) == others
    assert (one / "states" / "step-000012").is_dir()
    link = json.loads((two / "states" / "run.json").read_text())
    assert link == {"run": str(two / "runs" / "r")}
    copied = shutil.copytree(two / "runs" / "r", two / "runs" / "copy")
    for taken in ({"resume": str(copied)}, {"name": "new", "force_new": True}):
        with pytest.raises(ValueError, match="holds the checkpoints of another run"):
            run(ToyConfig(**saved_settings(str(copied), two / "runs", "toy") | taken))
    assert json.loads((two / "states" / "run.json").read_text()) == link
    shutil.rmtree(copied)
    (two / "runs" / "r").rename(copied)  # the run has another name now, and is the same
    assert run(ToyConfig(**saved_settings(str(copied), two / "runs", "toy") | {"resume": str(copied)})).step == 12


def test_a_signal_while_the_model_is_written_stops_nothing(tmp_path: Path) -> None:
    class Signalled(ToyTask):
        def save(self, model, folder):
            os.kill(os.getpid(), signal.SIGTERM)
            super().save(model, folder)

    config = ToyConfig(runs_dir=tmp_path, name="late")
    result = train(Signalled(config), config, "toy", "toy", quiet=True)
    assert result.reason == "completed" and not result.interrupted
    assert result.run.events()[-1]["interrupted"] is False
    assert "Stopping" not in (result.run.path / "log.txt").read_text()


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    """A later version has more settings; what the older one did is their default."""
    stopped_at(2, ToyConfig(runs_dir=tmp_path, name="old", pace=0.02))
    path = tmp_path / "old" / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["optimizer"], content["config"]["poison_steps"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="--optimizer was 'adamw', is 'muon'"):
        run(ToyConfig(runs_dir=tmp_path, name="old", pace=0.02, optimizer="muon"))
    assert run(ToyConfig(runs_dir=tmp_path, name="old", pace=0.02)).reason == "completed"


class InterruptedTask(ToyTask):
    """In its sixth micro-batch Ctrl-C comes, and what computes the loss fails of it, as a compiler does."""

    def loss(self, model, tensors):
        if model.training and self.calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("CppCompileError: the compiler has gone")
        return super().loss(model, tensors)


def test_a_step_that_fails_of_ctrl_c_is_a_stop(tmp_path: Path) -> None:
    whole = run(ToyConfig(runs_dir=tmp_path, name="whole"))
    config = ToyConfig(runs_dir=tmp_path, name="halves")
    stopped = train(InterruptedTask(config), config, "toy", "toy", quiet=True)
    assert (stopped.reason, stopped.step, stopped.interrupted) == ("stopped", 2, True)
    assert stopped.run.state().status is Status.STOPPED
    assert "CppCompileError" in (tmp_path / "halves" / "log.txt").read_text()
    assert losses(run(config).run) == losses(whole.run)


def test_log_every_decides_only_about_the_log(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    class Telling(ToyTask):
        def tell(self, step, training, evaluation):
            told.append((step, training["loss"]))
            return ""

    every = run(ToyConfig(runs_dir=tmp_path, name="every"))
    config = ToyConfig(runs_dir=tmp_path, name="rarely", log_every=5)
    rarely = train(Telling(config), config, "toy", "toy", quiet=True)
    assert list(losses(rarely.run)) == [5, 10, 12]
    assert told == [(step, losses(every.run)[step]) for step in (4, 8, 12)]


def test_each_run_has_its_own_curves_on_a_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = ToyConfig(runs_dir=tmp_path, name="halves", pace=0.02, report_to=("tensorboard",))
    run(ToyConfig(runs_dir=tmp_path, name="other", report_to=("tensorboard",)))
    stopped_at(5, config)
    finished = run(config).run
    files = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    assert files == {tmp_path / "halves" / "limner", tmp_path / "other" / "limner"}
    board = EventAccumulator(str(finished.path / "limner")).Reload()
    assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(losses(finished))
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))


def test_the_machines_peak_is_measured_once_and_in_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for measured in (hardware.matrix_flops, hardware.bf16_speedup):
        measured.cache_clear()
    meter = Meter("tokens", 1e6, hardware.choose("cpu", "auto"))
    before = hardware.matrix_flops.cache_info()
    assert before.misses == 2  # fp32 and bf16
    meter.step_done(1)
    meter.read(1)
    assert hardware.matrix_flops.cache_info() == before
