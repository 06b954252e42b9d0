"""Kills a trainer again and again, resumes it, and compares the final weights with those of a run never killed.

    python benchmarks/resume.py [--kills 20] [--verb pretrain|train] [--seed 0]

Both runs are real: `limner pretrain` on the corpus that ships with Limner, or `limner train` on 80 scenes. Each
attempt is a process that lives for a random number of steps and a random part of the next ones, then receives
SIGKILL: in mid-step, while it saves, while it evaluates. At which steps they died is printed, so that one can see
that they died all over the run and not, on a busy machine, all at its beginning.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import random
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from limner.runs import Run

COMMANDS = {
    "pretrain": (
        "pretrain --config nano --corpus tiny --tokenizer byte --context-length 32 --width 32 --num-layers 2 "
        "--num-heads 2 --batch-size 4 --grad-accum-steps 2 --steps 150 --eval-freq 10 --checkpoint-freq 3 "
        "--sample-prompt The --device cpu"
    ),
    "train": (
        "train --dataset {pictures} --batch-size 4 --gradient-accumulation-steps 2 --max-steps 40 "
        "--num-train-epochs 100 --eval-steps 10 --eval-images 4 --save-steps 2 --num-beams 2 --device cpu"
    ),
}


def draw_pictures(folder: Path) -> None:
    """80 scenes as a person's own folder: name.png with name.txt beside it."""
    from PIL import Image

    from limner.data.scenes import make_scene

    folder.mkdir()
    for index in range(80):
        scene = make_scene(index)
        Image.fromarray(scene.picture()).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("\n".join(scene.captions()))


def attempt(arguments: list[str]) -> BaseProcess:
    """A process with one attempt; forked from one that has imported everything, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limner.training.trainer", "limner.training.caption_task"])
    process = context.Process(target=run_verb, args=(arguments,))
    process.start()
    return process


def run_verb(arguments: list[str]) -> None:
    from limner.cli.main import main

    raise SystemExit(main(arguments))


def wait_for_steps(run: Path, process: BaseProcess, number: int, steps: int) -> bool:
    """True when attempt ``number`` has begun to train and made so many steps; False: it has ended."""
    while process.is_alive():
        if (run / "config.json").is_file():
            own = [event["type"] for event in Run(run).events() if event["attempt"] == number]
            if "start" in own and own.count("metrics") >= steps:
                return True
        time.sleep(0.01)
    return False


def model_hash(run: Path) -> str:
    files = sorted(path for path in (run / "model").rglob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def losses(run: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in Run(run).events() if event["type"] == "metrics"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--verb", choices=sorted(COMMANDS), default="pretrain")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    dice = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        draw_pictures(pictures)
        command = COMMANDS[wanted.verb].format(pictures=pictures).split()
        command += ["--runs-dir", folder, "--threads", "1"]
        attempt([*command, "--name", "twin"]).join()
        steps = [event["time"] for event in Run(Path(folder) / "twin").events() if event["type"] == "metrics"]
        step_seconds = (steps[-1] - steps[0]) / len(steps)
        longest = 3 * len(steps) // (2 * (wanted.kills + 1))
        victim, died_at, attempts = Path(folder) / "victim", [], 0
        while True:
            process = attempt([*command, "--name", "victim"])
            attempts += 1
            lived = wait_for_steps(victim, process, attempts, dice.randint(0, longest))
            if lived and len(died_at) < wanted.kills:
                process.join(dice.uniform(0, 2 * step_seconds))
            else:
                process.join()
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            died_at.append(max(losses(victim), default=0))
        same_losses = losses(victim) == losses(Path(folder) / "twin")
        differ = int(model_hash(victim) != model_hash(Path(folder) / "twin"))
    print(f"died after steps {died_at}")
    print(f"kills {len(died_at)}, resumed runs {attempts - 1}, exit code {process.exitcode}")
    print(f"losses of all steps equal: {same_losses}")
    print(f"final-weight hashes that differ: {differ}")
    return differ


if __name__ == "__main__":
    raise SystemExit(main())
