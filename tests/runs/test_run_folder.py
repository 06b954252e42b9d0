"""The run folder's contract: numbered events through torn writes, commands taken once, states told."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from limner.cli.main import main
from limner.runs import (
    CommandQueue,
    EventReader,
    EventWriter,
    Run,
    Status,
    create_run,
    decode_number,
    find_run,
    list_runs,
    send_command,
)
from limner.runs.folder import default_name, free_name
from limner.runs.state import RunState, process_identity


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "runs", "one", "train", {"lr": 0.1})


def test_numbering_goes_on_over_attempts_and_torn_lines(run: Run) -> None:
    first = EventWriter(run.events_path)
    for step in range(3):
        first.write("metrics", step, loss=1.0 / (step + 1))
    first.close()
    with open(run.events_path, "ab") as file:
        file.write(b'{"seq":4,"attempt":1,"st')  # killed in mid-write
    assert [event["seq"] for event in run.events()] == [1, 2, 3]
    second = EventWriter(run.events_path)
    second.write("start", 3)
    second.close()
    events = run.events()
    assert [(e["seq"], e["attempt"]) for e in events] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert run.events(after_seq=3) == events[3:]


@pytest.mark.parametrize("content", [b"", b'{"seq":1', b"\n", b"\0" * 9 + b"\n"])
def test_a_log_without_a_whole_event_begins_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(content)
    writer = EventWriter(path)
    assert writer.write("start", 0)["seq"] == 1
    assert [event["seq"] for event in EventReader(path).read()] == [1]


def test_a_long_last_line_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("start", 0)
    writer.write("note", 1, text="x" * 300_000)
    writer.close()
    assert EventWriter(path).seq == 2


def test_numbers_that_json_lacks(run: Run) -> None:
    writer = EventWriter(run.events_path)
    writer.write("metrics", 1, loss=math.nan, inner={"a": [math.inf, -math.inf, 1.5]})
    line = run.events_path.read_text()
    assert '"NaN"' in line and '"-Infinity"' in line
    event = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert math.isnan(decode_number(event["loss"])) and decode_number(event["inner"]["a"][1]) == -math.inf
    assert decode_number("a word") == "a word"


def test_an_event_that_does_not_fit_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EventWriter(run.events_path)
    writer.write("start", 0)
    whole = run.events_path.read_bytes()

    class Full:
        def write(self, line: bytes) -> int:
            os.write(self.fileno(), line[:5])
            return 5

        def fileno(self) -> int:
            return real.fileno()

    real = writer._file
    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OSError, match="no space"):
        writer.write("metrics", 1, loss=1.0)
    assert run.events_path.read_bytes() == whole
    monkeypatch.undo()
    assert writer.write("metrics", 1, loss=1.0)["seq"] == 2


def test_a_reader_follows_and_waits_for_whole_lines(run: Run) -> None:
    reader = EventReader(run.events_path)
    assert reader.read() == []
    writer = EventWriter(run.events_path)
    for step in range(5):
        writer.write("metrics", step)
    assert [e["step"] for e in reader.read(limit=2)] == [0, 1]
    with open(run.events_path, "ab") as file:
        file.write(b'{"seq":6')
    assert [e["step"] for e in reader.read()] == [2, 3, 4]
    with open(run.events_path, "ab") as file:
        file.write(b',"attempt":1,"step":9,"time":1.0,"type":"note"}\n')
    assert [e["step"] for e in reader.read()] == [9]


def damage(path: Path, line: int) -> None:
    """As a power loss leaves it: blocks that were never written."""
    lines = path.read_bytes().split(b"\n")
    lines[line] = b"\0" * len(lines[line])
    path.write_bytes(b"\n".join(lines))


HUGE = b'{"seq":2,"attempt":1,"step":%d,"time":1,"type":"metrics"}' % (10**30)


@pytest.mark.parametrize("odd", [b"\0" * 80, b"{}", b'{"seq":7}', b"[" * 100_000, b'{"seq":"7"}', b"\xff", HUGE])
def test_a_damaged_line_is_passed_over(run: Run, capsys: pytest.CaptureFixture[str], odd: bytes) -> None:
    writer = EventWriter(run.events_path)
    for step in range(4):
        writer.write("metrics", step, loss=1.0)
    writer.write("complete", 4, reason="stopped")
    writer.close()
    lines = run.events_path.read_bytes().split(b"\n")
    run.events_path.write_bytes(b"\n".join([*lines[:1], odd, *lines[2:]]))
    assert [event["seq"] for event in run.events()] == [1, 3, 4, 5]
    assert run.state().status is Status.STOPPED and EventWriter(run.events_path).seq == 5
    other = create_run(run.path.parent, "two", "train", {})
    other.events_path.mkdir()
    where = ["--runs-dir", str(run.path.parent)]
    assert main(["runs", "list", "--json", *where]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["one"]["status"] == "stopped" and rows["two"]["status"] == "unreadable"
    assert "IsADirectoryError" in rows["two"]["detail"]
    assert main(["runs", "list", *where]) == 0
    assert main(["runs", "delete", "one", "--yes", *where]) == 0


def test_whatever_lies_among_the_commands_is_no_reason_to_raise(run: Run) -> None:
    queue, folder = CommandQueue(run.path), run.path / "commands"
    (folder / "1.json").mkdir()
    (folder / "2.json").write_text('{"arguments":' + "[" * 200_000)
    (folder / "3.json").symlink_to("4.json")
    (folder / "4.json").symlink_to("3.json")
    os.mkfifo(folder / "5.json")
    (folder / "6.json").write_bytes(b"\xff\xfe")
    (folder / "7.json").symlink_to("nothing")
    wanted = send_command(run.path, "pause")
    taken = queue.poll()
    assert [command.name for command in taken if command.id != wanted] == ["invalid"] * 5
    assert taken[0].id == wanted or wanted in [command.id for command in taken]
    assert queue.poll() == [] and queue.poll() == []
    assert sorted(path.name for path in folder.iterdir()) == ["1.json", "4.json", "7.json"]


def test_commands_of_another_user_that_cannot_be_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, sent = CommandQueue(run.path), send_command(run.path, "pause")

    def not_yours(self: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", not_yours)
    monkeypatch.setattr(Path, "unlink", not_yours)
    assert [(command.id, command.name) for command in queue.poll()] == [(sent, "invalid")]
    assert queue.poll() == [] and queue.poll() == []


def test_commands_come_in_order_and_once(run: Run) -> None:
    queue = CommandQueue(run.path)
    first = send_command(run.path, "pause")
    second = send_command(run.path, "sample", prompt="hello")
    (run.path / "commands" / "99999999999999999999-x.json").write_text("not json")
    taken = queue.poll()
    assert [c.id for c in taken[:2]] == [first, second]
    assert taken[1].arguments == {"prompt": "hello"} and taken[2].name == "invalid"
    assert queue.poll() == [] and queue.poll() == []
    third = send_command(run.path, "resume")
    assert [c.id for c in queue.poll()] == [third]
    with pytest.raises(ValueError, match="use one of: pause"):
        send_command(run.path, "explode")
    with pytest.raises(FileNotFoundError):
        send_command(run.path / "nowhere", "pause")


def test_a_command_in_the_same_tick_of_the_file_systems_clock(run: Run) -> None:
    """Many file systems' times move on in steps of milliseconds, some in steps of one or two seconds."""
    queue = CommandQueue(run.path)
    assert queue.poll() == []
    before = os.stat(queue.folder).st_mtime_ns
    sent = send_command(run.path, "pause")
    os.utime(queue.folder, ns=(before, before))
    assert [command.id for command in queue.poll()] == [sent]


def test_a_command_to_a_run_that_goes_away_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    send_command(run.path, "note", text="x")

    def too_late(*_: object) -> None:
        shutil.rmtree(run.path)
        raise FileExistsError("it was still there")

    monkeypatch.setattr(os, "mkdir", too_late)
    with pytest.raises(FileNotFoundError):
        send_command(run.path, "note", text="x")


def test_states(run: Run) -> None:
    assert run.state().status is Status.QUEUED
    writer = EventWriter(run.events_path)
    writer.write("progress", 0, phase="starting", **process_identity())
    assert run.state().status is Status.RUNNING
    writer.write("start", 0, total_steps=10, **process_identity())
    writer.write("paused", 4)
    assert (run.state().status, run.state().step, run.state().total_steps) == (Status.PAUSED, 4, 10)
    with pytest.raises(ValueError, match="is at work"):
        run.delete()
    writer.write("resumed", 4)
    writer.write("stopping", 5)
    assert run.state().status is Status.STOPPING
    writer.write("complete", 5, reason="stopped")
    assert run.state().status is Status.STOPPED and not run.state().resumable
    (run.checkpoints_path / "step-000005").mkdir()
    assert run.state().resumable
    writer.write("error", 5, message="it broke")
    assert (run.state().status, run.state().detail) == (Status.FAILED, "it broke")


def test_a_dead_process_is_a_crash(run: Run) -> None:
    code = "import json; from limner.runs.state import process_identity; print(json.dumps(process_identity()))"
    identity = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    EventWriter(run.events_path).write("start", 0, **identity)
    assert run.state().status is Status.CRASHED


@pytest.mark.parametrize("other", [{"pid_key": "a-boot/1"}, {"pid_started": 1.0, "pid_key": None}])
def test_a_reused_pid_is_not_the_trainer(run: Run, other: dict[str, Any]) -> None:
    EventWriter(run.events_path).write("start", 0, **(process_identity() | other))
    assert run.state().status is Status.CRASHED


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the start of a process is told in Unix time alone"
)
def test_a_clock_that_is_set_kills_no_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    EventWriter(run.events_path).write("start", 0, **process_identity())
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 2)  # as /proc/stat's btime says
    assert run.state().status is Status.RUNNING


def test_a_process_knows_to_a_hundredth_when_it_began() -> None:
    code = "from limner.runs.state import process_began; print(process_began())"
    before = time.time()
    began = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert before - 0.02 <= began <= time.time()


def test_a_run_whose_process_stands_in_a_damaged_line(run: Run) -> None:
    dead = process_identity() | {"pid": 2**22 + 7}
    for _ in range(2):
        writer = EventWriter(run.events_path)
        writer.write("start", 0, **dead)
        writer.write("metrics", 1, loss=1.0)
        writer.close()
    assert run.state().status is Status.CRASHED
    damage(run.events_path, 2)
    assert run.state().status is Status.RUNNING  # as of a trainer elsewhere, its last event's time decides
    late = run.events_path.read_text().replace(f'"time":{str(writer.last_time)[:8]}', '"time":1000')
    run.events_path.write_text(late)
    assert run.state().status is Status.CRASHED


def test_who_works_on_a_run_keeps_it_from_being_deleted(run: Run) -> None:
    EventWriter(run.events_path).write("complete", 0, reason="stopped")  # whatever the log says
    with run.lock(), pytest.raises(ValueError, match="at work in another process"):
        run.delete()
    assert (run.path / "config.json").is_file()
    run.delete()
    assert not list(run.path.parent.iterdir())


def test_a_deletion_that_was_cut_short_is_ended_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        run.delete()
    root = run.path.parent
    assert len(list(root.iterdir())) == 1 and not list_runs(root)
    older, *others = (root / name for name in (".old.0123abcd", ".photos.deleted", ".cache.0123abcd"))
    for folder in (older, *others):
        folder.mkdir()
    (older / "events.jsonl").touch()
    create_run(root, "two", "train", {}).delete()
    assert sorted(root.iterdir()) == sorted(others)  # what is not ours is left alone


def test_a_full_disk_burns_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", full)
        create_run(tmp_path, "one", "train", {})
    assert create_run(tmp_path, "one", "train", {}).config["verb"] == "train"


def test_names_stay_inside_the_folder(tmp_path: Path, run: Run) -> None:
    for name in ("../x", "a/b", ".hidden", "", "x" * 200):
        with pytest.raises(ValueError, match="cannot name a run"):
            create_run(tmp_path / "runs", name, "train", {})
    with pytest.raises(ValueError, match="too long"):
        create_run(tmp_path / "runs", "漢" * 80, "train", {})
    with pytest.raises(FileExistsError, match="choose another"):
        create_run(tmp_path / "runs", "one", "train", {})
    with pytest.raises(FileNotFoundError, match="Did you mean one"):
        find_run("onee", tmp_path / "runs")
    assert [found.name for found in list_runs(tmp_path / "runs")] == ["one"]
    assert run.config["config"] == {"lr": 0.1} and "torch" in run.config["versions"]


def test_names_that_are_made_up_are_no_longer_than_a_name_may_be(tmp_path: Path) -> None:
    name = "漢" * 76 + "ab"  # 230 bytes
    for _ in range(2):
        create_run(tmp_path, free_name(tmp_path, name), "train", {})
    for letter in "x漢\U00020000":
        create_run(tmp_path, default_name(tmp_path, "pretrain", letter * 60), "train", {})
        create_run(tmp_path, default_name(tmp_path, "pretrain", letter * 60), "train", {})
    assert len(list_runs(tmp_path)) == 8


def test_readers_and_the_command_line_import_no_torch(tmp_path: Path, run: Run) -> None:
    code = f"""
import sys
from limner.cli.main import main
assert main(["--help"]) == 0
assert main(["runs", "list", "--runs-dir", {str(tmp_path / "runs")!r}]) == 0
assert main(["runs", "tail", "one", "--no-follow", "--runs-dir", {str(tmp_path / "runs")!r}]) == 0
import limner
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_errors_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "pause", "nothing"]) == 1
    assert main(["pretain"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "limner runs: There is no run 'nothing' in runs. `limner runs list` shows what is there.",
        "limner: there is no verb 'pretain'; did you mean `limner pretrain`?",
    ]
    with pytest.raises(FileNotFoundError):
        main(["runs", "pause", "nothing", "--debug"])


def test_runs_from_the_terminal(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs-dir", str(tmp_path / "runs")]
    writer = EventWriter(run.events_path)
    writer.write("metrics", 1, loss=2.5, examples=[1, 0])
    writer.write("complete", 1, reason="completed")
    (run.path / "examples.json").write_text('["a.jpg", "b.jpg"]')
    assert main(["runs", "list", "--json", *where]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["name"], row["status"], row["loss"]) == ("one", "completed", 2.5)
    assert main(["runs", "examples", "one", "1", *where]) == 0
    assert capsys.readouterr().out.split() == ["b.jpg", "a.jpg"]
    assert main(["runs", "pause", "one", *where]) == 1
    assert "is completed; `pause` needs it running" in capsys.readouterr().err
    assert main(["runs", "delete", "one", "--yes", *where]) == 0
    assert not run.path.exists()


def test_a_tail_tells_the_end_however_it_falls(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = EventWriter(run.events_path)
    writer.write("start", 0, **process_identity())
    real, looks = Run.state, []

    def state(self: Run, *told: Any) -> RunState:
        """The run ends between a look at its log and one at its state."""
        looks.append(1)
        if len(looks) == 2:
            writer.write("complete", 9, reason="completed")
        found = real(self, *told)
        return found if len(looks) < 2 else replace(found, status=Status.COMPLETED)

    monkeypatch.setattr(Run, "state", state)
    assert main(["runs", "tail", "one", "--runs-dir", str(tmp_path / "runs")]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["start", "complete"]


def test_a_copy_of_a_checkpoint_is_none(run: Run) -> None:
    own = ["step-000020", "step-999990", "step-1000005"]
    for name in (*own, "step-000020-keep", "step-", "step-20", ".step-000030"):
        (run.checkpoints_path / name).mkdir()
    assert [path.name for path in run.checkpoints()] == own


def test_ctrl_d_deletes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_of_file(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_file)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["runs", "delete", "one", "--runs-dir", str(tmp_path / "runs")]) == 1
    assert run.path.is_dir()


def test_a_folder_is_measured_while_a_trainer_renames_in_it(run: Run) -> None:
    """Checkpoints are written aside, renamed and pruned at any time; what vanishes in mid-count is not an error."""
    (run.path / "model.safetensors").write_bytes(b"x" * 1000)
    still = run.size()
    churn = (
        "import os, shutil, sys\n"
        "for k in range(10**6):\n"
        "    os.makedirs(aside := f'{sys.argv[1]}/.step-{k}')\n"
        "    for n in range(20): open(f'{aside}/{n}', 'w').close()\n"
        "    os.rename(aside, done := f'{sys.argv[1]}/step-{k}')\n"
        "    shutil.rmtree(done)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", churn, str(run.checkpoints_path)])
    try:
        assert {run.size() for _ in range(500)} == {still}
    finally:
        trainer.kill()
        trainer.wait()
