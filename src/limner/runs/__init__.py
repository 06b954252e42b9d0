"""The run folder: the one contract between trainers, terminals, dashboards and notebooks.

    runs/<name>/
      config.json      the full resolved configuration
      events.jsonl     append-only; one JSON object a line; the trainer is its only writer
      commands/        requests, one file each; acknowledged in events.jsonl
      checkpoints/     resumable states, each complete or absent
      samples/         pictures named by hash
      log.txt          stdout and stderr of the trainer
      model/           the finished model in the stock format

Nothing here imports torch, or any other room of Limner.
"""

from limner.runs.commands import COMMANDS, Command, CommandQueue, send_command
from limner.runs.events import Event, EventReader, EventWriter, decode_number
from limner.runs.folder import Run, create_run, find_run, list_runs
from limner.runs.state import RunState, Status

__all__ = [
    "COMMANDS",
    "Command",
    "CommandQueue",
    "Event",
    "EventReader",
    "EventWriter",
    "Run",
    "RunState",
    "Status",
    "create_run",
    "decode_number",
    "find_run",
    "list_runs",
    "send_command",
]
