"""The teacher against a stub that fails in every usual way; labelling that can be interrupted."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_captioners import toy_picture

from limner.cli.main import main
from limner.data.folder import ImageCaptionDataset
from limner.data.records import Record
from limner.evaluation.quality.label import AnswerLog, estimate, label, labelled
from limner.evaluation.quality.teacher import GUIDELINE, Misconfigured, Rate, Refused, Teacher, Unreachable


def answer(text: Any, **fields: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | fields
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 12}}).encode()


class Stub:
    """An endpoint that answers by a script: each entry is a behaviour of one request; afterwards it is well."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.requests.append(body | {"path": self.path})
                    stub.headers.append(dict(self.headers))
                    step = stub.script.pop(0) if stub.script else None
                stub.behave(self, step)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1"

    def behave(self, handler: BaseHTTPRequestHandler, step: Any) -> None:
        if step is None:
            self.send(handler, 200, answer(f"A picture, number {len(self.requests)}."))
        elif isinstance(step, bytes):
            self.send(handler, 200, step)
        elif isinstance(step, int):
            after = {"Retry-After": "1"} if step == 429 else {}
            self.send(handler, step, b'{"error": {"message": "because\\nof reasons"}}', **after)
        elif step == "sleep":
            time.sleep(1.5)
            handler.close_connection = True
        elif step == "drop":
            handler.connection.close()
        elif step == "truncate":
            handler.send_response(200)
            whole = answer("A picture that nobody reads to its end.")
            handler.send_header("Content-Length", str(len(whole)))
            handler.end_headers()
            handler.wfile.write(whole[:40])
            handler.close_connection = True
        elif step == "redirect":
            self.send(handler, 302, b"", Location="http://127.0.0.1:9/elsewhere")

    def send(self, handler: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def stub() -> Iterator[Stub]:
    one = Stub()
    yield one
    one.server.shutdown()
    one.server.server_close()


def teacher(stub: Stub, **settings: Any) -> tuple[Teacher, list[float]]:
    pauses: list[float] = []
    return Teacher(stub.endpoint, "eyes-1", "secret", timeout=0.5, sleep=pauses.append, **settings), pauses


@pytest.mark.parametrize(
    "failure",
    [
        429,
        500,
        503,
        "sleep",
        "drop",
        "truncate",
        b"not json",
        b"{}",
        b'{"choices": []}',
        answer(""),
        answer(None),
        answer("A sentence that was cut", finish_reason="length"),
        b"x" * 1_000_001,
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(stub: Stub, failure: Any) -> None:
    stub.script = [failure, failure]
    one, pauses = teacher(stub)
    found = one.ask(toy_picture(), "Say.")
    assert found.caption == "A picture, number 3." and found.attempts == 3
    assert found.usage == {"prompt_tokens": 300, "completion_tokens": 12}
    assert len(pauses) == 2
    least = 1.0 if failure == 429 else 0.0  # Retry-After is kept to
    assert least <= pauses[0] <= max(1.0, least) and least <= pauses[1] <= max(2.0, least)
    assert len({json.dumps(request) for request in stub.requests}) == 1  # the very same question


def test_the_question_is_the_documented_form(stub: Stub) -> None:
    one, _ = teacher(stub, max_side=32)
    one.ask(toy_picture(height=64, width=128), GUIDELINE)
    request = stub.requests[0]
    assert request["path"] == "/v1/chat/completions" and request["model"] == "eyes-1"
    text, image = request["messages"][0]["content"]
    assert text == {"type": "text", "text": GUIDELINE}
    kind, _, data = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 16)
    assert stub.headers[0]["Authorization"] == "Bearer secret"


def test_what_will_not_pass_ends_at_once(stub: Stub) -> None:
    for failure, kind in ((401, Misconfigured), (404, Misconfigured), ("redirect", Misconfigured), (400, Refused)):
        stub.script = [failure]
        one, pauses = teacher(stub)
        before = len(stub.requests)
        with pytest.raises(kind, match=r"HTTP \d+"):
            one.ask(toy_picture(), "Say.")
        assert len(stub.requests) == before + 1 and pauses == []
    stub.script = [answer(None, finish_reason="content_filter", message={"content": "x"})]
    with pytest.raises(Refused, match="content filter"):
        teacher(stub)[0].ask(toy_picture(), "Say.")
    stub.script = [500] * 3
    with pytest.raises(Unreachable, match=r"no usable answer in 3 tries .*HTTP 500: because of reasons"):
        teacher(stub, retries=2)[0].ask(toy_picture(), "Say.")
    with pytest.raises(Refused, match=r"nowhere\.jpg"):
        teacher(stub)[0].ask("nowhere.jpg", "Say.")
    with pytest.raises(ValueError, match="expected an address like"):
        Teacher("file:///etc/passwd", "m")


def test_the_rate_limit_spreads_requests_over_all_threads() -> None:
    slept: list[float] = []
    rate = Rate(120, sleep=slept.append)
    threads = [threading.Thread(target=rate.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == pytest.approx([0.5, 1.0, 1.5, 2.0], abs=0.1)


def records(count: int) -> list[Record]:
    return [Record(toy_picture(i), ["an old caption"], str(i)) for i in range(count)]


def answered(log: AnswerLog, count: int) -> list[str]:
    return [record.image_id for record in records(count) if log.caption(record) is not None]


def test_an_interrupted_labelling_goes_on(stub: Stub, tmp_path: Path) -> None:
    stub.script = [None, None, None, 401]
    question = ("eyes", "Say.", True)
    with pytest.raises(Misconfigured):
        label(records(8), teacher(stub)[0], AnswerLog(tmp_path, *question), concurrency=1)
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write('{"image_id": "7", "caption": "torn')
    log = AnswerLog(tmp_path, *question)
    assert answered(log, 8) == ["0", "1", "2"]
    asked = len(stub.requests)
    stub.script = [422]
    refused = label(records(8), teacher(stub)[0], log, concurrency=1)
    assert len(stub.requests) == asked + 5
    assert [reason.split(":")[0] for reason in refused] == ["3"] and answered(log, 8) == list("0124567")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert rows[-1]["prompt"].endswith("an old caption\nKeep what is right in it.")
    assert {"image_id", "model", "prompt", "time", "caption", "raw", "usage", "attempts"} == rows[-1].keys()
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()


def test_answers_to_something_else_do_not_count(stub: Stub, tmp_path: Path) -> None:
    label(records(3), teacher(stub)[0], AnswerLog(tmp_path, "eyes", "Say."), concurrency=1)
    assert answered(AnswerLog(tmp_path, "eyes", "Say."), 4) == ["0", "1", "2"]
    others = [("eyes", "Say it well."), ("better eyes", "Say."), ("eyes", "Say.", True)]
    assert [answered(AnswerLog(tmp_path, *other), 4) for other in others] == [[], [], []]
    pairs = [(record, "train") for record in records(3)]
    entries = list(labelled(pairs, AnswerLog(tmp_path, "eyes", "Say.")))
    assert [entry.extra["labelled_by"] for entry in entries] == ["eyes"] * 3


def test_a_silent_endpoint_is_given_up_and_many_ask_at_once(stub: Stub, tmp_path: Path) -> None:
    stub.script = [500] * 1000
    with pytest.raises(Unreachable):
        log = AnswerLog(tmp_path / "a", "eyes", "Say.")
        label(records(50), teacher(stub, retries=0)[0], log, concurrency=3)
    assert len(stub.requests) < 12
    stub.script = []
    log = AnswerLog(tmp_path / "b", "eyes", "Say.")
    assert label(records(20), teacher(stub)[0], log, concurrency=4) == []
    assert len(answered(log, 20)) == 20


def test_the_estimate_is_told_first() -> None:
    told = estimate(1000, "word " * 100, 512, 2.5, 10.0, 60)
    assert told.input_tokens == 1000 * (130 + 85 + 170) and told.output_tokens == 25_000
    assert told.cost == pytest.approx((385_000 * 2.5 + 25_000 * 10) / 1e6)
    assert told.minutes == pytest.approx(1000 / 60)
    assert estimate(1, "x", 1024, None, None, None).cost is None


def test_label_on_the_command_line(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        toy_picture(i).save(data / f"{i}.png")
    (data / "captions.json").write_text(json.dumps({f"{i}.png": f"An old caption {i}." for i in range(4)}))
    out = tmp_path / "out"
    command = ["data", "label", str(data), "--endpoint", stub.endpoint, "--model", "eyes-1", "--out", str(out)]
    command += [
        "--cache-dir",
        str(tmp_path / "cache"),
        "--per-minute",
        "60000",
        "--price-in",
        "1",
        "--price-out",
        "2",
    ]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "4 pictures to ask about" in told and "at the prices given" in told and "Add --yes" in told
    assert stub.requests == []
    stub.script = [503]
    assert main([*command, "--yes"]) == 0
    labelled = list(ImageCaptionDataset(out))
    assert len(labelled) == 4 and all(record.captions[0].startswith("A picture, number") for record in labelled)
    rows = [json.loads(line) for path in out.glob("*/metadata.jsonl") for line in path.read_text().splitlines()]
    assert {row["labelled_by"] for row in rows} == {"eyes-1"}
    assert sorted(row["original_captions"][0] for row in rows) == [f"An old caption {i}." for i in range(4)]


def test_the_same_command_goes_on(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures without any caption; first a trial, then all with one refused, then that one."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for i in range(4):
        toy_picture(i).save(data / f"{i}.png")
    command = ["data", "label", str(data), "--endpoint", stub.endpoint, "--model", "eyes-1", "--out", str(out)]
    command += ["--cache-dir", str(tmp_path / "cache"), "--per-minute", "60000", "--concurrency", "1", "--yes"]
    assert main([*command, "--sample", "2"]) == 0
    assert len(ImageCaptionDataset(out)) == 2
    stub.script = [400]
    assert main(command) == 0
    assert "the same command asks for them again" in capsys.readouterr().err
    assert len(ImageCaptionDataset(out)) == 3 and len(stub.requests) == 4
    assert main(command) == 0
    assert len(ImageCaptionDataset(out)) == 4 and len(stub.requests) == 5
    rows = [json.loads(line) for path in out.glob("*/metadata.jsonl") for line in path.read_text().splitlines()]
    assert all("original_captions" not in row for row in rows)
    assert list(tmp_path.glob(".*")) == []  # nothing is left aside
    metadata = next(out.glob("*/metadata.jsonl"))
    metadata.write_text(metadata.read_text().replace("A picture", "My picture"))
    assert main(command) == 1  # what somebody has changed is not replaced
    assert "exists and is not empty" in capsys.readouterr().err
    assert "My picture" in metadata.read_text()
    assert main([*command, "--rewrite", "--out", str(tmp_path / "other")]) == 1
    assert "no captions" in capsys.readouterr().err


def test_only_the_same_command_makes_a_set_anew(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of another data set, by another model or prompt stays; nothing that fails is in the way."""
    out, prompt = tmp_path / "out", tmp_path / "prompt.txt"
    prompt.write_text("Say.")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            toy_picture(i).save(tmp_path / name / f"{name}{i}.png")
    common = ["--out", str(out), "--endpoint", stub.endpoint, "--yes", "--per-minute", "60000"]
    common += ["--cache-dir", str(tmp_path / "cache"), "--concurrency", "1"]
    command = ["data", "label", str(tmp_path / "a"), "--model", "eyes-1", *common]
    assert main([*command, "--sample", "2"]) == 0
    asked = len(stub.requests)
    others = [["data", "label", str(tmp_path / "b"), "--model", "eyes-1"]]
    others += [[*command[:3], "--model", "eyes-2"], [*command[:5], "--prompt", str(prompt)]]
    for other in others:
        assert main([*other, *common]) == 1
        assert "exists and is not empty" in capsys.readouterr().err
    assert len(stub.requests) == asked and len(ImageCaptionDataset(out)) == 2

    def full(path: Path, target: Path) -> Path:
        if target == out and path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", full)
    assert main(command) == 1
    assert len(ImageCaptionDataset(out)) == 2 and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*command[:2], "a", *command[3:]]) == 0  # the same data set, told otherwise
    assert len(ImageCaptionDataset(out)) == 3 and len(stub.requests) == asked + 1
