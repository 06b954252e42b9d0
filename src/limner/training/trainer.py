"""The one training loop, for every task.

    run = open or resume -> prepare the task -> [ step -> boundary ] ... -> best weights -> model/

A *step* is one optimizer step over an effective batch; a *boundary* is the place between two steps where a run
evaluates, saves, and answers commands. Whatever happens happens there, so that a checkpoint is always a whole step.
Everything a step does is a function of the weights, the optimizer's moments and the step's number, so a resumed
run repeats an uninterrupted one bit for bit (same machine, threads and world size).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn

from limner import device as hardware
from limner.config.training import TrainSettings
from limner.runs import CommandQueue, Run
from limner.runs.folder import checkpoint_step
from limner.runs.state import process_identity
from limner.training.checkpoints import CheckpointManager, Tensors, put_tensors, trained_tensors
from limner.training.journal import FULL, Journal
from limner.training.meter import Meter
from limner.training.opening import open_run, recorded_machine
from limner.training.optimizer import (
    build_optimizer,
    gradient_norm,
    layer_norms,
    load_optimizer_tensors,
    optimizer_tensors,
)
from limner.training.order import Order, position_seed
from limner.training.schedule import lr_scale
from limner.training.sharding import gather, shard
from limner.training.steering import Steering
from limner.training.task import Batch, Task


@dataclass
class Progress:
    """Where a run stands: all that a checkpoint holds beside weights, moments and the task's own state."""

    step: int = 0
    units: int = 0
    """Tokens or captions seen."""
    evaluations_without_gain: int = 0
    best_value: float | None = None
    nonfinite_in_a_row: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last evaluation measured."""
    evaluated_step: int = -1
    """The step of that evaluation."""


@dataclass(frozen=True)
class _Gradient:
    """What a step's forward and backward found, over all processes; the gradient itself is the parameters'."""

    loss: float
    """The mean over all supervised tokens."""
    norm: float
    units: int
    """Tokens or captions."""
    figures: dict[str, float]
    """See `Task.figures`."""


@dataclass(frozen=True)
class Result:
    """How a run ended. ``reason``: "completed", "early stopping" or "stopped" (it can then be resumed)."""

    run: Run
    reason: str
    step: int
    metrics: dict[str, float]
    interrupted: bool = False
    """Stopped by Ctrl-C or SIGTERM."""
    is_main_process: bool = True
    """Of several processes, one does what is left to do after training."""


def train(task: Task, config: TrainSettings, verb: str, subject: str, quiet: bool = False) -> Result:
    """Trains ``task`` as ``config`` says, in a run of its own or in the unfinished one that it names.

    Args:
        verb: the verb that resumes the run ("train", "pretrain", "demo").
        subject: what the default run name tells: the data set or corpus.
        quiet: print nothing.

    Raises:
        ValueError: see `open_run`; also whatever the task finds wrong with its data or model. The run's log then
            holds an `error` event.
    """
    choice = hardware.choose(config.device, *recorded_machine(config))
    accelerator = Accelerator(
        cpu=choice.device.type == "cpu",
        log_with=list(config.report_to) or None,
        project_dir=str(config.runs_dir),
    )
    if choice.dtype == torch.float16:
        raise ValueError("fp16 gradients vanish without loss scaling, which is not offered; train in bf16 or fp32.")
    _check_processes(accelerator, config)
    opened = open_run(verb, config, subject) if accelerator.is_main_process else None
    path = _broadcast(accelerator, opened.run.path if opened else None)
    accelerator.project_configuration.logging_dir = str(path)  # of trackers that write files
    journal = Journal(path if accelerator.is_main_process else None, quiet)
    try:
        if opened and (kept := opened.run.checkpoints()):
            journal.step = checkpoint_step(kept[-1].name) or 0  # where it will go on
        journal.event("progress", phase="starting", done=0, total=1, unit="", **process_identity())
        if opened and opened.resumed:
            journal.say(f"Resuming run '{opened.run.name}'.")
        journal.say(f"Computing on {choice}.")
        trainer = Trainer(task, config, Run(path), journal, accelerator, choice)
        trainer.load_latest()
        if opened and opened.new_length:
            change = opened.keep_new_length()
            journal.event("note", text=change)
            journal.say(change)
        return trainer.run_to_end(verb)
    except KeyboardInterrupt:  # while preparing, or at the second Ctrl-C
        with contextlib.suppress(OSError):
            journal.event("complete", reason="stopped", metrics={}, interrupted=True)
        journal.to_log("Interrupted.")
        raise
    except BaseException as error:
        message = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        with contextlib.suppress(OSError):
            journal.event("error", message=message, traceback=traceback.format_exc())
        journal.to_log(message if isinstance(error, ValueError) else traceback.format_exc())
        raise
    finally:
        journal.close()
        if opened:
            opened.close()


class Trainer:
    """The loop over one task; `train` makes and runs it."""

    def __init__(
        self,
        task: Task,
        config: TrainSettings,
        run: Run,
        journal: Journal,
        accelerator: Accelerator,
        choice: hardware.Choice,
    ) -> None:
        self.task, self.config, self.run, self.journal = task, config, run, journal
        self.accelerator, self.choice = accelerator, choice
        hardware.keep_freed_memory()
        torch.manual_seed(config.seed)
        task.run_path = run.path
        task.prepare(choice.device, choice.dtype, journal.progress)
        self.directions = {"eval_loss": "min", **task.directions}
        if config.metric_for_best_model not in self.directions:
            known = ", ".join(self.directions)
            raise ValueError(
                f"'{config.metric_for_best_model}' is not measured by this run; choose one of: {known}."
            )
        self._plain: nn.Module | None = None
        """Where the weights are sharded: the copy that they are gathered into."""
        if config.shard:
            self.model: nn.Module = task.model.to(accelerator.device)
            self._plain = shard(self.model, accelerator.num_processes, accelerator.device)
        else:
            self.model = accelerator.prepare_model(task.model)
        self.model.train()  # for good: `_inference` puts it back
        self.optimizer = build_optimizer(task.parameter_groups())
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        loop = config.loop()
        self.loop = loop
        self.order = Order(
            task.num_examples,
            loop.batch_size,
            loop.accumulation,
            accelerator.num_processes,
            config.seed,
            task.arrange,
        )
        self.total_steps = loop.total_steps(self.order.steps_per_epoch)
        self.eval_every = loop.eval_every
        if self.eval_every is None:
            self.eval_every = max(1, min(50, self.total_steps // 10))
        self.warmup_steps = config.warmup(self.total_steps)
        self.progress = Progress()
        folder = config.checkpoints_dir or run.checkpoints_path
        self.manager: CheckpointManager | None = None
        if accelerator.is_main_process:
            metric = config.metric_for_best_model
            keep_every = loop.checkpoint_every if loop.keep_numbered else 0
            self.manager = CheckpointManager(
                folder, metric, self.directions[metric], config.save_total_limit, keep_every
            )
        self.saved_step = -1
        self.last_values: dict[str, Any] = {}
        self.meter = Meter(task.unit, task.flops_per_unit, choice)
        self.steering = Steering(self, CommandQueue(run.path) if accelerator.is_main_process else None)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limner-batches")
        self._ahead: dict[int, Future[list[Batch]]] = {}

    # -- the run ---------------------------------------------------------------------------------------------

    def run_to_end(self, verb: str) -> Result:
        self._announce(verb)
        with self.steering.signals():
            try:
                reason = self._loop()
                if reason != "stopped":
                    self.steering.finishing = True
                    self._finish()
            finally:
                self._reader.shutdown(cancel_futures=True)
        interrupted = self.steering.interrupted and reason == "stopped"
        self.journal.event("complete", reason=reason, metrics=self.progress.metrics, interrupted=interrupted)
        if reason == "stopped":
            self.journal.say(
                f"Stopped at step {self.progress.step} of {self.total_steps}, saved. "
                f"To go on: limner {verb} --resume {self.run.name} --runs-dir {self.run.path.parent}"
            )
        if self.config.report_to:
            self.accelerator.end_training()
        progress, main = self.progress, self.accelerator.is_main_process
        return Result(self.run, reason, progress.step, progress.metrics, interrupted, main)

    def _loop(self) -> str:
        """Runs steps until the end; says why it ended."""
        progress, eval_every, save_every = self.progress, self.eval_every, self.loop.checkpoint_every
        if progress.step == 0 and progress.evaluated_step < 0:
            if self.task.evaluates_first:  # to be looked at: it takes no part in what is best
                self._evaluate()
            self._probe(tell=self.task.evaluates_first)
        while progress.step < self.total_steps:
            if self.steering.at_boundary() == "stop":
                self.save_checkpoint()
                return "stopped"
            if self._exhausted():
                return "early stopping"
            try:
                gradient = self._gradient()
            except Exception as error:
                # A terminal's Ctrl-C also ends the processes that compile a model: the stop is why the step failed.
                if not self.steering.interrupted or self.accelerator.num_processes > 1:
                    raise
                self.journal.to_log(f"{type(error).__name__}: {str(error)[:1000]}")  # a compiler's has all the code
                continue
            self._apply(gradient)
            step = progress.step
            last = step == self.total_steps
            if last or (eval_every and step % eval_every == 0):
                self._evaluate()
                improved = self._improved()
                self._probe(tell=True)
                if improved:
                    self.save_checkpoint()
            elif step & (step - 1) == 0 and step < (eval_every or self.total_steps):
                self._probe()  # at 1, 2, 4, 8 ...: early training changes fastest
            if last or (save_every and step % save_every == 0):
                self.save_checkpoint()
        return "early stopping" if self._exhausted() and progress.step < self.total_steps else "completed"

    def _finish(self) -> None:
        """Puts the best weights back and writes the model in the stock format."""
        model = self._whole_model()
        if self.accelerator.is_main_process and self.manager:
            best = self.manager.best
            if best and best.step != self.progress.step:
                put_tensors(model, best.read()[0])
                self.journal.say(f"The best checkpoint is step {best.step}: {_numbers(best.metrics)}.")
            aside = self.run.path / ".model"
            _remove_tree(aside)
            self.task.save(model, aside)
            _remove_tree(self.run.model_path)
            aside.rename(self.run.model_path)
            self.journal.say(f"The model is at {self.run.model_path}.")
        self.accelerator.wait_for_everyone()

    # -- one optimizer step ----------------------------------------------------------------------------------

    def _gradient(self) -> _Gradient:
        """The gradient of the mean loss over all supervised tokens of the effective batch; changes no weight."""
        progress, accelerator = self.progress, self.accelerator
        with self.meter.time("data"):
            batches = self._batches(progress.step)
            counts = [sum(b.num_targets for b in batches), sum(b.num_units for b in batches)]
            targets, units = self._over_ranks(counts)
        with self.meter.time("compute"):
            losses: list[torch.Tensor] = []
            figures: dict[str, float] = {}  # each summed over tokens or captions
            for k, batch in enumerate(batches):
                seed = position_seed(self.config.seed, progress.step, k, accelerator.process_index)
                hardware.seed_generators(seed, accelerator.device)
                tensors = {name: t.to(accelerator.device, non_blocking=True) for name, t in batch.tensors.items()}
                last = k == len(batches) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                    loss = self.task.loss(self.model, tensors)
                    objective = loss + self.task.auxiliary_loss
                    if batch.num_targets == 0:  # this rank has nothing in the round, but its peers wait for it
                        loss, objective = loss * 0.0, objective * 0.0
                    # DDP averages over ranks; a sum over ranks is what the mean over tokens needs.
                    accelerator.backward(objective * (accelerator.num_processes / max(1, targets)))
                losses.append(loss.detach())
                for name, mean in self.task.figures.items():
                    figures[name] = figures.get(name, 0.0) + mean * batch.num_units
            loss_sum, *sums = self._over_ranks([sum(map(float, losses)), *figures.values()])
            return _Gradient(
                loss=loss_sum / max(1, targets),
                norm=float(gradient_norm(self.parameters)),
                units=int(units),
                figures={name: s / max(1, units) for name, s in zip(figures, sums, strict=True)},
            )

    def _apply(self, gradient: _Gradient) -> None:
        """The optimizer's step along a gradient, where that is finite."""
        progress, norm, config = self.progress, gradient.norm, self.config
        scale = lr_scale(progress.step, self.total_steps, self.warmup_steps, config.schedule, config.lr_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale
        with self.meter.time("optimizer"):
            if math.isfinite(gradient.loss) and math.isfinite(norm):
                clip = config.grad_clip
                self.optimizer.step(clip / norm if clip and norm > clip else 1.0)
                progress.nonfinite_in_a_row = 0
            else:
                self._report_nonfinite(gradient.loss, norm)
            self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.units += gradient.units
        self.journal.step = progress.step
        self.meter.step_done(gradient.units)
        self._log_step(gradient)

    def _over_ranks(self, values: Sequence[float]) -> Sequence[float]:
        """Sums of these numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(sums).tolist()

    def _batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step; the next step's are read meanwhile, in a thread."""
        wanted = self._ahead.pop(step, None)
        if step + 1 < self.total_steps and step + 1 not in self._ahead:
            self._ahead[step + 1] = self._reader.submit(self._read, step + 1)
        return wanted.result() if wanted else self._read(step)

    def _read(self, step: int) -> list[Batch]:
        rank, batches = self.accelerator.process_index, []
        for k, indices in enumerate(self.order.micro_batches(step, rank)):
            seed = position_seed(self.config.seed, step, k, rank)
            batch = self.task.batch(indices or self.order.step_examples(step)[:1].tolist(), seed)
            if not indices:
                batch.num_targets = batch.num_units = 0
            batches.append(batch)
        return batches

    def _report_nonfinite(self, loss: float, norm: float) -> None:
        progress = self.progress
        progress.nonfinite_in_a_row += 1
        what = f"a loss of {loss} and a gradient norm of {norm}"
        message = f"Step {progress.step + 1} gave {what}; it was not applied."
        self.journal.say(message)
        self.journal.event(
            "warning",
            kind="nonfinite",
            message=message,
            loss=loss,
            gradient_norm=norm,
            examples=[self.task.example_id(int(i)) for i in self.order.step_examples(progress.step)],
            layer_norms=layer_norms(self.optimizer),
        )
        if progress.nonfinite_in_a_row >= self.config.max_nonfinite_steps:
            self.steering.request_pause(
                f"{progress.nonfinite_in_a_row} steps in a row were not finite. Look at the examples that the "
                "warnings name, or stop and begin again with a lower learning rate; resume goes on as it is."
            )

    def _log_step(self, gradient: _Gradient) -> None:
        progress = self.progress
        rates = {g["name"]: g["lr"] for g in self.optimizer.param_groups}
        values = {
            "loss": gradient.loss,
            **self.task.readings(gradient.loss, "training"),
            **gradient.figures,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": gradient.norm,
            "epoch": round(progress.step / self.order.steps_per_epoch, 6),
            self.task.unit: progress.units,
            **self.meter.read(self.total_steps - progress.step),
        }
        self.last_values = values  # an evaluation tells them, logged or not
        rate = values[f"{self.task.unit}_per_second"]
        text = f"loss {gradient.loss:.3f}  {rate:,.0f} {self.task.unit}/s"
        self.journal.training(progress.step, self.total_steps, text)
        if progress.step % self.config.log_every and progress.step != self.total_steps:
            return
        examples = self.order.step_examples(progress.step - 1).tolist()
        self.journal.event("metrics", **values, learning_rates=rates, examples=examples)
        if self.config.report_to:
            self.accelerator.log(
                {k: v for k, v in values.items() if isinstance(v, (int, float))}, step=progress.step
            )

    # -- evaluation ------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Measures the fixed subset."""
        with self.meter.outside("evaluation"), self._inference() as model:
            metrics = {"eval_loss": self._validation_loss(model)}
            if self.accelerator.is_main_process:
                metrics |= self.task.evaluate(model)
            metrics = _broadcast(self.accelerator, metrics)
        progress = self.progress
        progress.metrics, progress.evaluated_step = metrics, progress.step
        readings = self.task.readings(metrics["eval_loss"], "validation")
        self.journal.event("validation", **metrics, **readings, seconds=self.meter.last_outside)
        if self.config.report_to:
            self.accelerator.log(dict(metrics), step=progress.step)
        self.journal.say(self.task.tell(progress.step, self.last_values, metrics | readings))

    def _improved(self) -> bool:
        """Whether the last evaluation's deciding metric is the best so far; counts for early stopping."""
        progress = self.progress
        value = progress.metrics[self.config.metric_for_best_model]
        smaller = self.directions[self.config.metric_for_best_model] == "min"
        best = progress.best_value
        improved = math.isfinite(value) and (best is None or (value < best if smaller else value > best))
        if improved:
            progress.best_value, progress.evaluations_without_gain = value, 0
        else:
            progress.evaluations_without_gain += 1
        return improved

    def _validation_loss(self, model: nn.Module) -> float:
        """The mean loss per supervised token over the task's validation batches, shared out among the ranks."""
        accelerator, loss_sum, num_targets = self.accelerator, 0.0, 0
        for index, batch in enumerate(self.task.validation_batches()):
            mine = index % accelerator.num_processes == accelerator.process_index
            if not mine:
                continue
            tensors = {name: t.to(accelerator.device) for name, t in batch.tensors.items()}
            loss_sum += float(self.task.loss(model, tensors))
            num_targets += batch.num_targets
        loss_sum, targets = self._over_ranks([loss_sum, num_targets])
        if targets == 0:
            raise ValueError("The validation set has no supervised tokens; give it more data.")
        return loss_sum / targets

    def _probe(self, tell: bool = False) -> None:
        """Decodes the fixed prompts and pictures, and logs (and tells a person) what the model says of them now."""
        with self.meter.outside("samples"), self._inference() as model:
            try:
                samples = self.task.probes(model) if self.accelerator.is_main_process else ()
            except OSError as error:  # of its pictures; a sample is no reason for a run to end
                if error.errno not in FULL:
                    raise
                message = f"Step {self.progress.step} has no samples: the disk is full ({error})."
                self.journal.event("warning", kind="disk_full", message=message)
                self.journal.say(message)
                return
            for sample in samples:
                self.journal.event("sample", **sample)
                line = self.task.tell_sample(sample) if tell else None
                if line:
                    self.journal.say(line)

    def answer_sample(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A `sample` command's answer, with the live weights; empty on ranks other than 0."""
        with self.meter.outside("samples"), self._inference() as model:
            return self.task.sample(model, arguments) if self.accelerator.is_main_process else {}

    @contextlib.contextmanager
    def _inference(self) -> Iterator[nn.Module]:
        """The model for evaluation. All ranks enter; within, each may compute alone."""
        model = self._whole_model()
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train()

    def _whole_model(self) -> nn.Module:
        """The model as one process has it: unwrapped, or gathered from all ranks, which must all ask."""
        if self._plain is None:
            return self.accelerator.unwrap_model(self.model)
        gather(self.model, self._plain)
        return self._plain

    def _exhausted(self) -> bool:
        patience = self.config.patience
        return patience > 0 and self.progress.evaluations_without_gain >= patience

    # -- resumable states ------------------------------------------------------------------------------------

    def save_checkpoint(self, command: str | None = None) -> None:
        """Saves a resumable state of this step (once). A full disk pauses the run and is tried again after.

        Args:
            command: who asked for it and is answered; a full disk is then the answer, and pauses nothing.
        """
        progress, acknowledgement = self.progress, {"command": command} if command else {}
        if self.saved_step == progress.step:
            if command:
                self.journal.event(
                    "command", name="checkpoint", ok=True, message="saved already", **acknowledgement
                )
            return
        with self.meter.outside("checkpoint"):
            weights, moments = trained_tensors(self._whole_model()), optimizer_tensors(self.optimizer)
        while why := self._written(weights, moments, acknowledgement):
            if command:
                self.journal.event("command", name="checkpoint", ok=False, message=why, **acknowledgement)
                return
            if self.steering.hold(f"{why}. Free some, then resume.") == "stop":
                raise OSError(errno.ENOSPC, why)
        self.saved_step = progress.step

    def _written(self, weights: Tensors, moments: Tensors, acknowledgement: dict[str, str]) -> str | None:
        """Rank 0 writes a checkpoint and says so. Returns, on every rank, why not where the disk is full."""
        why: str | None = None
        if self.manager is not None:
            progress = self.progress
            metrics = progress.metrics if progress.evaluated_step == progress.step > 0 else {}
            try:
                with self.meter.outside("checkpoint"):
                    state = {"progress": vars(progress), "task": self.task.state()}
                    saved = self.manager.save(progress.step, weights, moments, state, metrics)
                best = self.manager.best
                self.journal.event(
                    "checkpoint",
                    path=str(saved.path),
                    bytes=sum(path.stat().st_size for path in saved.path.iterdir()),
                    best=best is not None and best.step == saved.step,
                    metrics=saved.metrics,
                    **acknowledgement,
                )
            except OSError as error:
                if error.errno not in FULL:
                    raise
                why = f"Step {progress.step} is not saved: the disk is full ({error})"
        return _broadcast(self.accelerator, why)

    def load_latest(self) -> None:
        """Takes up the run where its latest checkpoint stands, if it has one.

        Raises:
            ValueError: that is damaged, of another model, of other data, or beyond the end; or there are some,
                and none can be read.
        """
        folder = self.config.checkpoints_dir or self.run.checkpoints_path
        metric = self.config.metric_for_best_model
        manager = self.manager or CheckpointManager(folder, metric, self.directions[metric])
        latest = manager.latest
        newest = latest.step if latest else -1
        later = [path.name for path in manager.unreadable() if (checkpoint_step(path.name) or 0) > newest]
        if later and latest is None:
            raise ValueError(
                f"Run '{self.run.name}' cannot go on: the manifest of {', '.join(later)} in {folder} cannot be "
                "read. Put it back, or remove that folder to begin at step 0."
            )
        if later and latest:
            message = f"The manifest of {', '.join(later)} cannot be read; that state is left out."
            self.journal.event("warning", kind="checkpoint", message=message)
            self.journal.say(message)
        if latest is None:
            self.journal.step = 0
            return
        weights, moments, state = latest.read()
        self.task.load_state(state["task"])
        put_tensors(self.accelerator.unwrap_model(self.model), weights)
        load_optimizer_tensors(self.optimizer, moments)
        self.progress = Progress(**state["progress"])
        if self.progress.step > self.total_steps:
            raise ValueError(
                f"Run '{self.run.name}' is at step {self.progress.step} already, and {self.total_steps} are asked "
                f"for; give it more, or {self.progress.step} to end it there."
            )
        self.saved_step = self.journal.step = self.progress.step
        self.journal.say(f"Going on from {latest.path.name} of {self.total_steps}.")

    def _announce(self, verb: str) -> None:
        """The start event, and the derived numbers for a person."""
        trained = sum(p.numel() for p in self.parameters)
        total = sum(p.numel() for p in self.accelerator.unwrap_model(self.model).parameters())
        self.journal.event(
            "start",
            kind=self.task.kind,
            verb=verb,
            unit=self.task.unit,
            total_steps=self.total_steps,
            steps_per_epoch=self.order.steps_per_epoch,
            examples=self.task.num_examples,
            examples_per_step=self.order.examples_per_step,
            resumed_from=self.progress.step if self.saved_step >= 0 else None,
            parameters=total,
            trained_parameters=trained,
            device=str(self.choice.device),
            precision=str(self.choice.dtype).removeprefix("torch."),
            threads=self.choice.threads,
            world_size=self.accelerator.num_processes,
            directions=self.directions,
            metric_for_best_model=self.config.metric_for_best_model,
            **self.task.facts(),
            **process_identity(),
        )
        self.journal.start_heartbeat()
        if self.accelerator.is_main_process and not self.task.numbered_examples:
            names = [self.task.example_id(index) for index in range(self.task.num_examples)]
            (self.run.path / "examples.json").write_text(json.dumps(names))
        at_once = min(self.order.examples_per_step, self.task.num_examples)
        self.journal.say(
            f"Run '{self.run.name}': {total:,} parameters, {trained:,} trained ({trained / total:.1%}); "
            f"{self.task.num_examples:,} examples, {at_once} a step, "
            f"{self.order.steps_per_epoch:,} steps an epoch, {self.total_steps:,} in all, "
            f"{self.warmup_steps} of warm-up; evaluated "
            + (f"every {self.eval_every}." if self.eval_every else "at the end.")
        )
        if self.config.report_to:
            # What an attempt that was killed logged beyond its last checkpoint comes again.
            board = {"purge_step": self.progress.step + 1}
            settings = {"tensorboard": board, "wandb": {"name": self.run.name}}
            self.accelerator.init_trackers("limner", init_kwargs=settings)


def _check_processes(accelerator: Accelerator, config: TrainSettings) -> None:
    """Refuses launches that would not do what they say.

    Raises:
        ValueError: a sharding that is not ours, or of one process.
    """
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise ValueError(
            f"Limner trains in one process, with DDP, or sharded with --shard, but not with "
            f"{accelerator.distributed_type}; launch it with torchrun, or with `accelerate launch --multi_gpu`."
        )
    if config.shard and accelerator.num_processes == 1:
        raise ValueError(
            "--shard shares the weights out among processes, and there is only one; launch several "
            "(torchrun --nproc_per_node=N -m limner ...), or leave it out."
        )
    launched = os.environ.get("ACCELERATE_USE_CPU") == "True" and "WORLD_SIZE" not in os.environ
    if launched and accelerator.num_processes == 1:
        accelerator.print(
            "accelerate launch --cpu starts one process, whatever --num_processes says; for several: "
            "torchrun --nproc_per_node=N -m limner ..."
        )


def _broadcast(accelerator: Accelerator, value: Any) -> Any:
    """Rank 0's value, on every rank."""
    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
