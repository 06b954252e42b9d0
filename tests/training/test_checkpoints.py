"""Checkpoints are complete or absent, verified, pruned as said; a killed trainer repeats its twin bit for bit."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from toy import ToyConfig, ToyTask, train_toy

from limner.runs import Run, Status, send_command
from limner.runs.folder import being_read
from limner.training import checkpoints
from limner.training.checkpoints import CheckpointManager
from limner.training.trainer import train


def save(manager: CheckpointManager, step: int, **metrics: float):
    tensors = {"w": torch.full((4,), float(step))}
    return manager.save(step, tensors, {"w#step": torch.tensor(step)}, {"step": step}, metrics)


def steps(manager: CheckpointManager) -> list[int]:
    return [checkpoint.step for checkpoint in manager.list()]


def test_keeps_the_latest_n_and_the_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, "cider", "max", keep=2)
    for step, value in [(1, 0.1), (2, 0.9), (3, 0.3), (4, float("nan")), (5, 0.5)]:
        save(manager, step, cider=value)
    assert steps(manager) == [2, 4, 5]
    assert manager.best.step == 2 and manager.latest.step == 5
    again = CheckpointManager(tmp_path, "cider", "max", keep=2)
    assert steps(again) == [2, 4, 5] and again.best.step == 2
    assert CheckpointManager(tmp_path, "cider", "min", keep=2).best.step == 5
    weights, moments, state = again.load_best()
    assert weights["w"].tolist() == [2.0] * 4 and int(moments["w#step"]) == 2 and state == {"step": 2}
    again.delete(4)
    assert steps(again) == [2, 5]
    with pytest.raises(FileNotFoundError, match="step-000002, step-000005"):
        again.load(4)


def test_numbered_states_stay_and_the_best_ones_replace_each_other(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, "loss", "min", keep=1, keep_every=20)
    for step in range(5, 45, 5):  # all of them improve
        save(manager, step, loss=1 / step)
    assert steps(manager) == [20, 40]


def test_direction_must_be_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'min' or 'max'"):
        CheckpointManager(tmp_path, "loss", "least")  # type: ignore[arg-type]


def test_damage_is_found(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, "loss", "min")
    path = save(manager, 1).path
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors of checkpoint step-000001 is damaged"):
        manager.load(1)


def test_a_checkpoint_without_some_of_the_weights_fills_nothing(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    model[2].requires_grad_(False)
    kept = {name: tensor.detach().clone() for name, tensor in checkpoints.trained_tensors(model).items()}
    assert "2.weight" not in kept and "1.running_mean" in kept
    other = {name: torch.ones_like(tensor) for name, tensor in kept.items()}
    for damaged in (other | {"odd": torch.ones(1)}, {k: v for k, v in other.items() if k != "0.bias"}):
        with pytest.raises(ValueError, match=r"another model: (odd|0\.bias) .* \(1 tensors\)"):
            checkpoints.put_tensors(model, damaged)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in checkpoints.trained_tensors(model).items())
    checkpoints.put_tensors(model, other)
    assert all((tensor == 1).all() for tensor in checkpoints.trained_tensors(model).values())


def test_what_cannot_be_read_is_told_before_going_on(tmp_path: Path) -> None:
    config = ToyConfig(runs_dir=tmp_path, name="r")
    task = ToyTask(config)
    task.stop_at = 8
    stopped = train(task, config, "toy", "toy", quiet=True)
    assert stopped.reason == "stopped"
    folders = stopped.run.checkpoints()
    shutil.copytree(folders[-1], folders[-1].with_name(folders[-1].name + "-keep"))
    (folders[-1] / "manifest.json").write_text("")
    manifests = [(folder / "manifest.json", (folder / "manifest.json").read_text()) for folder in folders[:-1]]
    for path, _ in manifests:
        path.write_text("{")
    with pytest.raises(ValueError, match=f"manifest of .*{folders[-1].name} .* cannot be read"):
        train(ToyTask(config), config, "toy", "toy", quiet=True)
    for path, text in manifests:
        path.write_text(text)
    result = train(ToyTask(config), config, "toy", "toy", quiet=True)
    told = [event for event in result.run.events() if event["type"] == "warning"]
    assert len(told) == 1 and folders[-1].name in told[0]["message"]
    start = [event for event in result.run.events() if event["type"] == "start"][-1]
    assert f"step-{start['resumed_from']:06d}" == folders[-2].name
    assert folders[-1].with_name(folders[-1].name + "-keep").is_dir()


def test_a_reader_keeps_its_checkpoint(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, "loss", "min", keep=1)
    first = save(manager, 1)
    with being_read(first.path):
        save(manager, 2)
        assert steps(manager) == [1, 2]
        with pytest.raises(ValueError, match="being read"):
            manager.delete(1)
    save(manager, 3)
    assert steps(manager) == [3]


@pytest.mark.parametrize("fault", ["write", "fsync", "rename"])
def test_a_failed_save_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    manager = CheckpointManager(tmp_path, "loss", "min", keep=1)
    save(manager, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if fault == "write":
        monkeypatch.setattr(checkpoints, "save_file", full)
    else:
        monkeypatch.setattr(os, fault, full)
    with pytest.raises(OSError, match="No space left"):
        save(manager, 2)
    monkeypatch.undo()
    assert steps(manager) == [1] and [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert manager.load_latest()[2] == {"step": 1}


def test_a_full_disk_pauses_and_goes_on_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = train(ToyTask(c := ToyConfig(runs_dir=tmp_path, name="twin")), c, "toy", "toy", quiet=True)
    real, full = checkpoints.save_file, threading.Event()
    full.set()

    def save_file(tensors: dict, path: Path) -> None:
        if full.is_set() and "step-000006" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    folder = tmp_path / "full"
    kept: list[str] = []

    def person() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (folder.exists() and Run(folder).state().status is Status.PAUSED):
            time.sleep(0.01)
        kept.extend(path.name for path in Run(folder).checkpoints())
        full.clear()
        send_command(folder, "resume")

    helper = threading.Thread(target=person)
    helper.start()
    config = ToyConfig(runs_dir=tmp_path, name="full")
    result = train(ToyTask(config), config, "toy", "toy", quiet=True)
    helper.join()
    assert kept[-1] == "step-000004"
    reasons = [e["reason"] for e in result.run.events() if e["type"] == "paused"]
    assert len(reasons) == 1 and "disk is full" in reasons[0]
    assert _model_hash(result.run.path) == _model_hash(twin.run.path)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in mid-step, mid-save, mid-evaluation: the same command again, until it completes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the fork server finds `toy` to preload
    twin, victim = tmp_path / "twin", tmp_path / "victim"
    settings = {"runs_dir": tmp_path, "steps": 120, "eval_every": 5, "checkpoint_every": 1, "pace": 0.01}
    _trainer(settings | {"name": "twin"}).join()
    dice, kills = random.Random(7), 0
    while True:
        process = _trainer(settings | {"name": "victim"})
        _wait_until_at_work(victim, process, kills + 1)
        process.join(dice.uniform(0.0, 0.3) if kills < 20 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0 and kills == 20
    assert _model_hash(victim) == _model_hash(twin)
    assert _last_losses(victim) == _last_losses(twin)
    events = Run(victim).events()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert {e["attempt"] for e in events} == set(range(1, 22))


def _trainer(settings: dict) -> BaseProcess:
    """A trainer process; forked from one that has imported already what it needs, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy", "torch._dynamo", "torch.distributed.tensor"])
    process = context.Process(target=train_toy, args=(settings,))
    process.start()
    return process


def _wait_until_at_work(folder: Path, process: BaseProcess, attempt: int) -> None:
    """The kill should fall into the training, not into its start."""
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        if folder.exists() and any(e["type"] == "start" and e["attempt"] == attempt for e in Run(folder).events()):
            return
        time.sleep(0.005)


def _last_losses(folder: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in Run(folder).events() if e["type"] == "metrics"}


def _model_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_safetensors_own_error_of_a_full_disk_pauses_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its I/O errors are no OSError, and hold the system's number only in their text."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError) as error:
        save(CheckpointManager(tmp_path, "cider", "max", keep=2), 1)
    assert error.value.errno == errno.ENOSPC
