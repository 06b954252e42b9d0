"""Several processes: the same examples in the same steps, the same losses, one writer of the run folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from toy import train_toy

from limner.runs import Run


def losses(folder: Path, type: str, field: str) -> list[float]:
    return [event[field] for event in Run(folder).events() if event["type"] == type]


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["toy"])  # imported once for all launches


def launch(processes: int, settings: dict, stop_at: int | None = None) -> None:
    """What torchrun does, without starting Python anew."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launched = [
        PROCESSES.Process(target=one_of, args=(rank, processes, port, settings, stop_at))
        for rank in range(processes)
    ]
    for process in launched:
        process.start()
    for process in launched:
        process.join(timeout=120)
    assert [process.exitcode for process in launched] == [0] * processes


def one_of(rank: int, processes: int, port: int, settings: dict, stop_at: int | None) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    torch.set_num_threads(1)
    train_toy(settings, stop_at)


def start(processes: int, words: list[str]) -> None:
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *runner, *words], check=True, timeout=120, env=environment)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_several_processes_train_as_one(tmp_path: Path) -> None:
    """1 process x batch 8 and 2 x batch 4, with DDP and sharded: equal to 1e-5, also in an epoch's short last step;
    and a sharded run that is stopped goes on bit for bit, or in one process to 1e-5."""
    settings = {"runs_dir": str(tmp_path), "dropout": 0.0, "accumulation": 2, "steps": 14}
    one, ddp, sharded, stopped = (tmp_path / name for name in ("one", "ddp", "sharded", "stopped"))
    launch(1, settings | {"name": "one", "batch_size": 8})
    launch(2, settings | {"name": "ddp", "batch_size": 4})
    launch(2, settings | {"name": "sharded", "batch_size": 4, "shard": True})
    for run in (ddp, sharded):
        for type, field in (("metrics", "loss"), ("metrics", "gradient_norm"), ("validation", "eval_loss")):
            assert losses(run, type, field) == pytest.approx(losses(one, type, field), rel=1e-5), (run, field)
        assert losses(run, "metrics", "rows") == losses(one, "metrics", "rows")
        for name, weight in weights(one).items():
            assert_close(weights(run)[name], weight, atol=1e-5, rtol=1e-5)
        events = Run(run).events()
        assert next(event for event in events if event["type"] == "start")["world_size"] == 2
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))  # rank 0 alone writes

    launch(2, settings | {"name": "stopped", "batch_size": 4, "shard": True}, stop_at=3)
    assert Run(stopped).state().step == 3
    shutil.copytree(stopped, tmp_path / "elsewhere" / "stopped")
    launch(2, settings | {"name": "stopped", "batch_size": 4, "shard": True})
    assert losses(stopped, "metrics", "loss") == losses(sharded, "metrics", "loss")
    for name, weight in weights(sharded).items():
        assert torch.equal(weights(stopped)[name], weight)
    # The batch of one process is the two processes' together: told as the settings that it was begun with.
    alone = tmp_path / "elsewhere" / "stopped"
    config = json.loads((alone / "config.json").read_text())
    config["config"] |= {"batch_size": 8, "runs_dir": str(alone.parent)}
    (alone / "config.json").write_text(json.dumps(config))
    launch(1, settings | {"name": "stopped", "batch_size": 8, "runs_dir": str(alone.parent)})
    assert losses(alone, "metrics", "loss") == pytest.approx(losses(sharded, "metrics", "loss"), rel=1e-5)


def test_a_sharded_gpt_learns_what_a_whole_one_learns(tmp_path: Path) -> None:
    """Blocks of their own, a tied head, evaluation, samples, and a stock model at the end."""
    common = (
        "-m limner pretrain --corpus tiny --tokenizer byte --context-length 32 --width 32 --num-heads 4 "
        "--num-layers 2 --dropout 0 --tie-embeddings --steps 4 --eval-freq 2 --sample-tokens 4 --lr 3e-3 "
        f"--device cpu --precision fp32 --runs-dir {tmp_path} --cache-dir {tmp_path / 'cache'}"
    ).split()
    start(1, [*common, "--name", "one", "--batch-size", "8"])
    start(2, [*common, "--name", "two", "--batch-size", "4", "--shard"])
    one, two = tmp_path / "one", tmp_path / "two"
    for type, field in (("metrics", "loss"), ("validation", "eval_loss"), ("metrics", "gradient_norm")):
        assert losses(two, type, field) == pytest.approx(losses(one, type, field), rel=1e-5), field
    texts = [
        [event["text"] for event in Run(folder).events() if event["type"] == "sample"] for folder in (one, two)
    ]
    assert texts[0] == texts[1] and len(texts[0]) >= 4
    assert weights(two).keys() == weights(one).keys()
    for name, weight in weights(one).items():
        assert_close(weights(two)[name], weight, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_sharded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is only one"):
        train_toy({"runs_dir": str(tmp_path), "shard": True})
    with pytest.raises(ValueError, match="do not go together"):
        train_toy({"runs_dir": str(tmp_path), "shard": True, "compile": True})
