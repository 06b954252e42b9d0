"""Answers a run's commands at its step boundaries: pause, resume, stop, checkpoint, sample, note; and signals."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import broadcast_object_list

from limner.runs import Command, CommandQueue
from limner.runs.state import process_began

if TYPE_CHECKING:
    from limner.training.trainer import Trainer

POLL_SECONDS = 0.1
"""How often a paused run looks for commands."""

Verdict = Literal["go", "stop"]


class Steering:
    """The boundary's work for a `Trainer`. ``queue`` is None on ranks other than 0, which follow rank 0."""

    def __init__(self, trainer: Trainer, queue: CommandQueue | None) -> None:
        self.trainer, self.queue = trainer, queue
        self.interrupted = self.finishing = False
        self._signal_waiting = False
        self._pause_reason: str | None = None
        self._began: float | None = process_began()
        """When this process began, until it has looked for commands once."""
        self._asked: deque[Command] = deque()
        """Commands that are still to be answered: one that holds the run leaves those behind it waiting."""

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """While within, the first Ctrl-C or SIGTERM is a `stop`; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = self._signal_waiting = True
            what = "The run is over and writes its model" if self.finishing else "Stopping at the end of this step"
            self.trainer.journal.say(f"{what} (press Ctrl-C again to give it up).")

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request_pause(self, reason: str) -> None:
        """The run holds at the next boundary."""
        self._pause_reason = reason

    def at_boundary(self) -> Verdict:
        """Answers what has been asked since the last boundary; holds the run while it is paused."""
        journal = self.trainer.journal
        own = []
        if journal.disk_full and not journal.flush():
            why = "The disk is full: events wait in memory. Free some space, then resume."
            own.append(Command("disk", "pause", {"reason": why}))
        self._listen(own)
        if self._pause_reason is not None:
            reason, self._pause_reason = self._pause_reason, None
            return self.hold(reason)
        while self._asked:
            command = self._asked.popleft()
            if command.name == "stop":
                return self._stop(command)
            if command.name == "pause":
                return self.hold(str(command.arguments.get("reason", "")), command.id)
            if command.name == "resume":
                self._refuse(command, "the run is not paused")
            else:
                self._answer(command)
        return "go"

    def hold(self, reason: str, command: str | None = None) -> Verdict:
        """Waits, the model in memory, until a `resume` or a `stop` comes; answers everything else meanwhile."""
        journal = self.trainer.journal
        journal.event("paused", reason=reason, **({"command": command} if command else {}))
        journal.say(f"Paused at step {journal.step}. {reason}".rstrip())
        with self.trainer.meter.outside("paused"):
            while True:
                self._listen()
                while self._asked:
                    asked = self._asked.popleft()
                    if asked.name == "stop":
                        return self._stop(asked)
                    if asked.name == "resume":
                        journal.event("resumed", command=asked.id)
                        journal.say("Resumed.")
                        return "go"
                    if asked.name == "pause":
                        self._refuse(asked, "the run is paused already")
                    else:
                        self._answer(asked)
                time.sleep(POLL_SECONDS)
                if journal.disk_full:
                    journal.flush()

    def _stop(self, command: Command) -> Verdict:
        self.trainer.journal.event("stopping", command=command.id)
        while self._asked:
            self._refuse(self._asked.popleft(), "the run is stopping")
        return "stop"

    def _answer(self, command: Command) -> None:
        """Answers checkpoint, sample and note; anything else is refused in the log."""
        journal = self.trainer.journal
        match command.name:
            case "checkpoint":
                self.trainer.save_checkpoint(command.id)
            case "note":
                journal.event("note", text=str(command.arguments.get("text", "")), command=command.id)
            case "sample":
                try:
                    journal.event("sample", **self.trainer.answer_sample(command.arguments), command=command.id)
                except (ValueError, OSError) as error:
                    self._refuse(command, str(error))
                except Exception as error:  # nonsense in a request, or too much: no reason for a run to end
                    self._refuse(command, f"{type(error).__name__}: {error}")
            case _:
                self._refuse(command, f"'{command.name}' is no command")

    def _polled(self, queue: CommandQueue) -> list[Command]:
        """What others ask of this process. What waits from before it began was asked of one that is dead."""
        commands = queue.poll()
        if self._began is None:
            return commands
        began, self._began = self._began, None
        for command in commands:
            if command.time < began:
                self._refuse(command, "it was sent to an earlier process of this run")
        return [command for command in commands if command.time >= began]

    def _refuse(self, command: Command, why: str) -> None:
        self.trainer.journal.event("command", command=command.id, name=command.name, ok=False, message=why)

    def _listen(self, own: Sequence[Command] = ()) -> None:
        """Takes up, on every rank, what rank 0 asks of itself or was asked by others; a signal is a `stop`."""
        commands = list(own)
        if self.queue is not None:
            commands += self._polled(self.queue)
            if self._signal_waiting:
                self._signal_waiting = False
                commands.append(Command("signal", "stop"))
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            # An integer is cheap to share at every step; the commands themselves follow only when there are some.
            count = torch.tensor([len(commands)], device=accelerator.device)
            commands = broadcast_object_list([commands])[0] if int(accelerator.reduce(count)) else []
        self._asked.extend(commands)
