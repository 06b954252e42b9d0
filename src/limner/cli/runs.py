"""``limner runs``: list, follow, pause, resume, stop and delete runs. Reads run folders and writes commands."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated, Any, Literal

import tyro
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from limner.cli.parse import parse
from limner.cli.telling import answers
from limner.config.runs import (
    CheckpointRun,
    DeleteRun,
    ExamplesOfStep,
    ListRuns,
    NoteRun,
    PauseRun,
    ResumeRun,
    StopRun,
    TailRun,
)
from limner.runs import EventReader, Run, Status, find_run, list_runs, send_command
from limner.runs.state import Told

Action = (
    Annotated[ListRuns, tyro.conf.subcommand("list")]
    | Annotated[TailRun, tyro.conf.subcommand("tail")]
    | Annotated[PauseRun, tyro.conf.subcommand("pause")]
    | Annotated[ResumeRun, tyro.conf.subcommand("resume")]
    | Annotated[StopRun, tyro.conf.subcommand("stop")]
    | Annotated[CheckpointRun, tyro.conf.subcommand("checkpoint")]
    | Annotated[NoteRun, tyro.conf.subcommand("note")]
    | Annotated[ExamplesOfStep, tyro.conf.subcommand("examples")]
    | Annotated[DeleteRun, tyro.conf.subcommand("delete")]
)

ACKNOWLEDGED_WITHIN_SECONDS = 30.0


def run(argv: list[str]) -> int:
    action: Any = parse(Action, argv or ["list"], "limner runs")  # type: ignore[arg-type]
    if isinstance(action, ListRuns):
        return _list(action)
    found = find_run(action.run, action.runs_dir)
    match action:
        case TailRun():
            return _tail(found, action)
        case PauseRun():
            return _ask(found, "pause", {Status.RUNNING})
        case ResumeRun():
            return _resume(found)
        case StopRun():
            return _stop(found, action.wait)
        case CheckpointRun():
            return _ask(found, "checkpoint", {Status.RUNNING, Status.PAUSED})
        case NoteRun():
            return _ask(found, "note", {Status.RUNNING, Status.PAUSED}, text=action.text)
        case ExamplesOfStep():
            return _examples(found, action.step)
        case _:
            return _delete(found, action.yes)


def _list(action: ListRuns) -> int:
    runs = list_runs(action.runs_dir)
    rows = [_row(one) for one in runs]
    if action.json_:
        for row in rows:
            print(json.dumps(row))
        return 0
    if not runs:
        print(f"No runs in {action.runs_dir} yet; `limner demo` makes one.")
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "step", "loss", "best", "model"):
        justify: Literal["left", "right"] = "right" if heading in ("step", "loss") else "left"
        whole = max(cell_len(row["name"]) for row in rows) if heading == "run" else None  # to be copied
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", min_width=whole)
    for row in rows:
        of = f"{row['step']}/{row['total_steps']}" if row["total_steps"] else str(row["step"])
        loss = f"{row['loss']:.3f}" if isinstance(row["loss"], float) else str(row["loss"] or "")
        last = row["model"] or " ".join(row["detail"].split())  # where its model is; else why there is none
        table.add_row(*map(escape, (row["name"], row["status"], of, loss, row["best"] or "", last)))
    answers().print(table)
    return 0


def _row(one: Run) -> dict[str, Any]:
    """`_summary`; of a run whose folder is not in order, why: it must not hide the others."""
    try:
        return _summary(one)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        told = {"name": one.name, "status": "unreadable", "step": 0, "resumable": False}
        unknown = dict.fromkeys(("total_steps", "loss", "best", "model"))
        return told | unknown | {"detail": f"{type(error).__name__}: {error}"}


def _summary(one: Run) -> dict[str, Any]:
    events = one.events()
    state = one.state(Told.by(events))
    loss = next((e["loss"] for e in reversed(events) if e["type"] == "metrics"), None)
    best = next((e for e in reversed(events) if e["type"] == "checkpoint" and e.get("best")), None)
    told = ", ".join(f"{k} {v:.4g}" for k, v in best["metrics"].items() if isinstance(v, float)) if best else None
    return {
        "name": one.name,
        "status": str(state.status),
        "step": state.step,
        "total_steps": state.total_steps,
        "resumable": state.resumable,
        "detail": state.detail,
        "loss": loss,
        "best": told,
        "model": str(one.model_path) if one.model_path.is_dir() else None,
    }


def _tail(found: Run, action: TailRun) -> int:
    reader = EventReader(found.events_path)
    past = reader.read()
    told = Told.by(past)
    events = past[-action.lines :] if action.lines else []
    was_active = True
    while True:
        for event in events:
            print(json.dumps(event) if action.json_ else _line(event), flush=True)
        if not action.follow:
            return 0
        active = found.path.is_dir() and found.state(told).status.active
        if not active and not was_active:
            return 0
        if active:
            time.sleep(0.5)
        was_active = active  # a run that has ended is read once more: it may have said so since the last look
        events = reader.read()
        told = told.after(events)


def _line(event: dict[str, Any]) -> str:
    skipped = {"seq", "attempt", "step", "time", "type", "traceback", "seconds", "learning_rates"}
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    fields = [f"{k} {_short(v)}" for k, v in event.items() if k not in skipped and not isinstance(v, (dict, list))]
    return f"{at}  step {event['step']:<6} {event['type']:<10} {'  '.join(fields)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ask(found: Run, name: str, when: set[Status], **arguments: Any) -> int:
    """Sends a command and waits for the event that acknowledges it."""
    status = found.state().status
    if status not in when:
        raise ValueError(f"Run '{found.name}' is {status}; `{name}` needs it {' or '.join(sorted(when))}.")
    reader = EventReader(found.events_path)
    reader.read()
    identity = send_command(found.path, name, **arguments)
    deadline = time.monotonic() + ACKNOWLEDGED_WITHIN_SECONDS
    while time.monotonic() < deadline:
        for event in reader.read():
            if event.get("command") == identity:
                if event.get("ok") is False:
                    raise ValueError(f"Run '{found.name}' refused: {event['message']}.")
                print(f"Run '{found.name}', step {event['step']}: {name} done.")
                return 0
        time.sleep(0.05)
    print(
        f"Run '{found.name}' has been asked to {name}; it has not answered yet (its step is long, or it is gone)."
    )
    return 1


def _resume(found: Run) -> int:
    status = found.state().status
    if status is Status.PAUSED:
        return _ask(found, "resume", {Status.PAUSED})
    if status.active:
        raise ValueError(f"Run '{found.name}' is {status} already.")
    if status is Status.COMPLETED:
        raise ValueError(f"Run '{found.name}' is complete; there is nothing to resume.")
    verb = found.config["verb"]
    command = [sys.executable, "-m", "limner", verb, "--resume", found.name, "--runs-dir", str(found.path.parent)]
    return os.execv(sys.executable, command)


def _stop(found: Run, wait: bool) -> int:
    reader, told = EventReader(found.events_path), Told()
    code = _ask(found, "stop", {Status.RUNNING, Status.PAUSED})
    while wait and found.state(told := told.after(reader.read())).status.active:
        time.sleep(0.2)
    return code


def _examples(found: Run, step: int) -> int:
    logged = [e for e in found.events() if e["type"] == "metrics" and e["step"] == step]
    if not logged:
        raise ValueError(f"Run '{found.name}' has no step {step} in its log.")
    listed = found.path / "examples.json"
    names = json.loads(listed.read_text()) if listed.exists() else None
    start = next((e for e in reversed(found.events()) if e["type"] == "start"), {})
    for index in logged[-1]["examples"]:
        if names is not None:
            print(names[index])
        else:  # windows of a text, as `PretrainTask.example_id` names them
            begin = index * start["stride"]
            print(f"tokens {begin} to {begin + start['context']}")
    return 0


def _delete(found: Run, yes: bool) -> int:
    size = found.size() / 2**20
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError(f"Add --yes to delete run '{found.name}': nobody is here to confirm it.")
        try:
            answer = input(f"Delete run '{found.name}' ({size:,.0f} MB)? [y/N] ")
        except EOFError:  # Ctrl-D
            answer = ""
            print()
        if answer.strip().lower() not in ("y", "yes"):
            return 1
    found.delete()
    print(f"Deleted run '{found.name}' ({size:,.0f} MB).")
    return 0
