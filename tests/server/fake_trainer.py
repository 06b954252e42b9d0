"""A trainer that trains nothing: it writes the events of a run and obeys commands, by `limner.runs` alone.

    python tests/server/fake_trainer.py pretrain --runs-dir runs --name hello --fake-steps 400 --fake-interval 0.05

It takes a real verb's arguments and ignores those that it does not know, so that the server can start it in the
place of `limner`. `train` makes a caption run, with pictures. Every ``--fake-x-y`` can also be given as the
environment's ``LIMNER_FAKE_X_Y``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from limner.runs import CommandQueue, EventWriter, Run, create_run
from limner.runs.state import process_identity

WORDS = [
    *("the", "small", "red", "circle", "left", "of", "a", "large", "blue", "square"),
    *("sat", "on", "green", "water", "and", "looked", "at", "two", "pale", "moons"),
]

_HEADER = b'{"weight":{"dtype":"F32","shape":[10,25],"data_offsets":[0,1000]}}'
SAFETENSORS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(1000)
"""250 parameters, all zero."""


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["demo", "pretrain", "train"])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--name", default=None)
    parser.add_argument("--resume", default=None)
    for name, kind, default in (
        ("steps", int, 200),
        ("interval", float, 0.05),
        ("nan-at", int, 0),  # loss NaN, then +inf, -inf, zero from this step on
        ("spike-at", int, 0),
        ("crash-at", int, 0),  # kill -9 of itself
        ("error-at", int, 0),  # an `error` event and exit code 1
        ("exit-at-start", int, 0),  # leaves with this code before any event
        ("points", int, 0),  # this many metrics at once, then the end
        ("eval-every", int, 20),
        ("pad", int, 0),  # bytes of ballast in every metrics event
    ):
        value = os.environ.get("LIMNER_FAKE_" + name.upper().replace("-", "_"), default)
        real = ("--steps", "--max-steps") if name == "steps" else ()  # the real verbs' own names for it
        parser.add_argument(
            f"--fake-{name}", *real, type=kind, default=kind(value), dest=f"fake_{name}".replace("-", "_")
        )
    return parser.parse_known_args(argv)[0]


class FakeRun:
    """One attempt of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        name = args.resume or args.name or f"{args.verb}-fake-{time.time_ns()}"
        path = args.runs_dir / name
        if (path / "config.json").is_file():
            self.run = Run(path)
        else:
            settings = {"lr": 3e-4, "seed": 42, "device": "cpu", "fake_steps": args.fake_steps}
            self.run = create_run(args.runs_dir, name, args.verb, settings)
        if args.resume:  # as it was begun
            settings = self.run.config["config"]
            steps = settings.get("fake_steps") or settings.get("steps") or settings.get("max_steps")
            args.fake_steps = steps or args.fake_steps
        self.writer = EventWriter(self.run.events_path)
        self.commands = CommandQueue(self.run.path)
        self.unit = "tokens" if args.verb == "pretrain" else "captions"
        saved = self.run.checkpoints()
        self.step = json.loads((saved[-1] / "state.json").read_text())["step"] if saved else 0
        self.saved_step = self.step if saved else -1
        self.random = random.Random(7)

    def event(self, type: str, **fields: object) -> None:
        self.writer.write(type, self.step, **fields)

    def start(self) -> None:
        self.event("progress", phase="starting", done=0, total=1, unit="", **process_identity())
        self.event("progress", phase="tokenize", done=1, total=1, unit="documents")
        caption = self.args.verb != "pretrain"
        self.event(
            "start",
            kind="caption" if caption else "pretrain",
            verb=self.args.verb,
            unit=self.unit,
            total_steps=self.args.fake_points or self.args.fake_steps,
            steps_per_epoch=100,
            examples=1600,
            examples_per_step=16,
            resumed_from=self.step or None,
            parameters=30_500_000,
            trained_parameters=2_286_144 if caption else 30_500_000,
            device="cpu",
            precision="float32",
            threads=1,
            world_size=1,
            directions={"eval_loss": "min", **({"CIDEr": "max"} if caption else {})},
            metric_for_best_model="eval_loss",
            reference_lines={} if caption else {"ln V": 10.82, "unigram": 6.4, "bigram": 3.9},
            **process_identity(),
        )

    def metrics(self, step: int) -> dict[str, object]:
        noise = self.random.random
        loss: object = 1.2 + 9.0 * math.exp(-step / 60) + 0.3 * noise()
        args = self.args
        if args.fake_spike_at and step == args.fake_spike_at:
            loss = 99.5
        if args.fake_nan_at and 0 <= step - args.fake_nan_at < 4:
            loss = (math.nan, math.inf, -math.inf, 0.0)[step - args.fake_nan_at]
        per_second = 16 / max(args.fake_interval, 0.001)
        return {
            "loss": loss,
            "learning_rate": 3e-4 * min(1.0, step / 20),
            "gradient_norm": 0.5 + noise(),
            "epoch": round(step / 100, 6),
            self.unit: step * 16,
            f"{self.unit}_per_second": per_second * (0.9 + 0.2 * noise()),
            "eta_seconds": (args.fake_steps - step) * args.fake_interval,
            "memory_mb": 900 + 5 * noise(),
            "seconds": {"data": 0.002, "compute": 0.04 + 0.01 * noise(), "optimizer": 0.005, "other": 0.001},
            "learning_rates": {"base": 3e-4 * min(1.0, step / 20)},
            **({"ballast": "x" * args.fake_pad} if args.fake_pad else {}),
        }

    def probes(self) -> None:
        if self.args.verb == "pretrain":
            for number, prompt in enumerate(("Once upon a time", "The meaning of life")):
                self.event("sample", probe=f"prompt-{number}", prompt=prompt, text=self.words(12))
            return
        for number in range(3):
            references = [self.words(7), self.words(6)]
            image = self.picture(number)
            self.event("sample", probe=f"picture-{number}", image=image, text=self.words(7), references=references)

    def words(self, count: int) -> str:
        known = min(len(WORDS), 3 + self.step // 10)
        return " ".join(self.random.choice(WORDS[:known]) for _ in range(count))

    def picture(self, number: int) -> str:
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (96, 96), (230, 220, 200))
        color = ("red", "blue", "green")[number % 3]
        ImageDraw.Draw(image).ellipse((20 + 8 * number, 20, 60 + 8 * number, 60), fill=color)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        name = hashlib.sha256(buffer.getvalue()).hexdigest()[:16] + ".png"
        (self.run.samples_path / name).write_bytes(buffer.getvalue())
        return name

    def evaluate(self) -> None:
        loss = 1.3 + 9.0 * math.exp(-self.step / 60)
        extra = (
            {"CIDEr": self.step / 300, "ROUGE_L": 0.3}
            if self.args.verb != "pretrain"
            else {"bits_per_byte": loss / 3}
        )
        self.event("validation", eval_loss=loss, **extra, seconds=0.01)
        self.probes()

    def save(self, command: str | None = None) -> None:
        acknowledgement = {"command": command} if command else {}
        if self.saved_step == self.step:
            if command:
                self.event("command", name="checkpoint", ok=True, message="saved already", **acknowledgement)
            return
        final = self.run.checkpoints_path / f"step-{self.step:06d}"
        aside = final.with_name("." + final.name)
        aside.mkdir(exist_ok=True)
        state = json.dumps({"step": self.step}).encode()
        (aside / "state.json").write_bytes(state)
        (aside / "model.safetensors").write_bytes(SAFETENSORS)
        metrics = {"eval_loss": 1.3 + 9.0 * math.exp(-self.step / 60)}
        files = {"state.json": {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()}}
        (aside / "manifest.json").write_text(json.dumps({"step": self.step, "metrics": metrics, "files": files}))
        aside.rename(final)
        self.saved_step = self.step
        self.event("checkpoint", path=str(final), bytes=4096, best=True, metrics=metrics, **acknowledgement)

    def obey(self) -> bool:
        """Answers commands as the trainer does; True: the run is to stop."""
        paused = False
        while True:
            for command in self.commands.poll():
                match command.name:
                    case "stop":
                        self.event("stopping", command=command.id)
                        return True
                    case "pause":
                        paused = True
                        self.event("paused", reason="", command=command.id)
                    case "resume" if paused:
                        paused = False
                        self.event("resumed", command=command.id)
                    case "checkpoint":
                        self.save(command.id)
                    case "note":
                        self.event("note", text=str(command.arguments.get("text", "")), command=command.id)
                    case "sample":
                        asked = {
                            key: command.arguments[key] for key in ("prompt", "image") if key in command.arguments
                        }
                        self.event("sample", probe="asked", text=self.words(12), command=command.id, **asked)
                    case _:
                        self.event("command", command=command.id, name=command.name, ok=False, message="refused")
            if not paused:
                return False
            time.sleep(0.02)
            if time.time() - self.writer.last_time > 5:
                self.event("heartbeat")

    def bulk(self) -> None:
        """Many metrics at once: written as the trainer would, without a system call for each."""
        lines = []
        for step in range(1, self.args.fake_points + 1):
            head = {"seq": self.writer.seq + step, "attempt": self.writer.attempt, "step": step}
            body = self.metrics(step)
            if not math.isfinite(body["loss"]):  # type: ignore[arg-type]
                body["loss"] = "NaN"
            lines.append(
                json.dumps({**head, "time": time.time(), "type": "metrics", **body}, separators=(",", ":"))
            )
            if len(lines) == 10_000 or step == self.args.fake_points:
                with open(self.run.events_path, "a") as file:
                    file.write("\n".join(lines) + "\n")
                lines.clear()
        self.writer.close()
        self.step = self.args.fake_points
        self.writer = EventWriter(self.run.events_path, self.writer.attempt)
        self.event("complete", reason="completed", metrics={}, interrupted=False)

    def go(self) -> int:
        args = self.args
        self.start()
        print(f"Run '{self.run.name}': a fake, {args.fake_steps} steps.", flush=True)
        if args.fake_points:
            self.bulk()
            return 0
        if self.step == 0:
            self.probes()
        while self.step < args.fake_steps:
            if self.obey():
                self.save()
                self.event("complete", reason="stopped", metrics={}, interrupted=False)
                return 0
            time.sleep(args.fake_interval)
            self.step += 1
            if args.fake_crash_at == self.step:
                print("about to be killed", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if args.fake_error_at == self.step:
                self.event("error", message="the fake was told to fail", traceback="")
                return 1
            self.event("metrics", **self.metrics(self.step))
            if self.step % args.fake_eval_every == 0:
                self.evaluate()
                self.save()
        self.save()
        self.run.model_path.mkdir(exist_ok=True)
        config = {"model_type": "gpt2" if args.verb == "pretrain" else "llava", "limner_fake": True}
        (self.run.model_path / "config.json").write_text(json.dumps(config))
        (self.run.model_path / "model.safetensors").write_bytes(SAFETENSORS)
        self.event("complete", reason="completed", metrics={"eval_loss": 1.3}, interrupted=False)
        return 0


def main() -> int:
    args = arguments(sys.argv[1:])
    if args.fake_exit_at_start:
        print("limner: this fake leaves before it begins.", file=sys.stderr)
        return args.fake_exit_at_start
    return FakeRun(args).go()


if __name__ == "__main__":
    sys.exit(main())
