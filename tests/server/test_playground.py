"""The playground: answers, streams, cancellation, and what happens when the worker hangs or dies."""

from __future__ import annotations

import asyncio
import io
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from server_process import FAKE_WORKER, TOKEN, ServerProcess, until, write_run
from starlette.testclient import TestClient

from limner.config.serve import ServeConfig
from limner.server.app import create_server
from limner.server.errors import Refusal
from limner.server.workroom import Workroom


def add_model(runs_dir: Path, name: str, kind: str = "gpt2") -> str:
    from fake_trainer import SAFETENSORS

    folder = write_run(runs_dir, name, [1.0]) / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "model.safetensors").write_bytes(SAFETENSORS)
    return f"run:{name}"


def picture() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return {"image": ("a.png", buffer.getvalue(), "image/png")}


def test_models_on_disk(make_client: Callable[..., TestClient], runs_dir: Path, tmp_path: Path) -> None:
    add_model(runs_dir, "gpt")
    add_model(runs_dir, "cap", "llava")
    write_run(runs_dir, "unfinished", [1.0])
    (tmp_path / "models").mkdir()
    shutil.copytree(runs_dir / "gpt" / "model", tmp_path / "models" / "mine")
    (tmp_path / "models" / "link").symlink_to(runs_dir / "gpt" / "model")
    found = make_client(models_dir=tmp_path / "models").get("/api/models").json()["models"]
    assert {(m["id"], m["kind"], m["parameters"]) for m in found} == {
        ("run:gpt", "text", 250),
        ("run:cap", "caption", 250),
        ("dir:mine", "text", 250),
    }


def test_generate_and_branch(client: TestClient, runs_dir: Path) -> None:
    model = add_model(runs_dir, "gpt")
    wish = {"model": model, "prompt": "Once", "max_tokens": 6, "seed": 3, "alternatives": 4}
    whole = client.post("/api/generate", json=wish).json()
    assert "".join(token["text"] for token in whole["tokens"]) == whole["text"]
    assert whole["finish"] in ("length", "eos") and whole["seed"] == 3
    for token in whole["tokens"]:
        assert len(token["alternatives"]) == 4 and token["logprob"] == token["alternatives"][0]["logprob"]
        assert sum(math.exp(other["logprob"]) for other in token["alternatives"]) <= 1 + 1e-9
    assert client.post("/api/generate", json=wish).json()["text"] == whole["text"]  # the seed is all there is
    kept = [token["id"] for token in whole["tokens"][:2]] + [whole["tokens"][2]["alternatives"][1]["id"]]
    branch = client.post("/api/generate", json=wish | {"forced": kept}).json()
    start = "".join(t["text"] for t in whole["tokens"][:2]) + whole["tokens"][2]["alternatives"][1]["text"]
    assert branch["text"].startswith(start)
    assert client.get("/api/models").json()["worker"]["loaded"] == [{"id": model, "bytes": 1000}]
    assert client.post("/api/models/unload", json={"model": model}).json()["loaded"] is False
    assert client.get("/api/models").json()["worker"]["loaded"] == []


def test_streams_are_lines_of_json(client: TestClient, runs_dir: Path) -> None:
    model = add_model(runs_dir, "gpt")
    with client.stream("POST", "/api/generate", json={"model": model, "max_tokens": 5, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in answer.iter_lines()]
    kinds = [line["type"] for line in lines]
    assert kinds[0] == "start" and kinds[-1] == "done" and set(kinds[1:-1]) == {"token"}
    assert "".join(line["text"] for line in lines if line["type"] == "token") == lines[-1]["text"]
    bad = add_model(runs_dir, "bad")
    with client.stream("POST", "/api/generate", json={"model": bad, "stream": True}) as answer:
        last = [json.loads(line) for line in answer.iter_lines()][-1]
    assert last["type"] == "error" and "model.safetensors" in last["error"]["message"]


def test_caption_gives_all_beams(client: TestClient, runs_dir: Path) -> None:
    model = add_model(runs_dir, "cap", "llava")
    answer = client.post("/api/caption", data={"model": model, "num_beams": 4}, files=picture()).json()
    assert (answer["width"], answer["height"], len(answer["captions"])) == (40, 30, 4)
    scores = [caption["score"] for caption in answer["captions"]]
    assert scores == sorted(scores, reverse=True)
    for caption in answer["captions"]:
        assert "".join(token["text"] for token in caption["tokens"]) == caption["text"]
    form = {"model": model, "num_beams": 2, "stream": True}
    with client.stream("POST", "/api/caption", data=form, files=picture()) as streamed:
        kinds = [json.loads(line)["type"] for line in streamed.iter_lines()]
    assert kinds == ["start", "phase", "phase", "caption", "caption", "done"]
    assert not list((runs_dir / ".server").glob("upload-*"))  # nothing of the picture stays


def test_wrong_input_names_its_field(client: TestClient, runs_dir: Path) -> None:
    model = add_model(runs_dir, "gpt")
    for wish, field in (
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"forced": [-1]}, "forced.0"),
        ({"unknown": 1}, "unknown"),
        ({"stop": [""]}, "stop.0"),
    ):
        answer = client.post("/api/generate", json={"model": model, **wish})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert client.post("/api/generate", json={"model": "run:none"}).status_code == 404
    assert client.post("/api/caption", data={"model": model}).json()["error"]["field"] == "image"


def test_leaving_a_stream_frees_the_worker(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    model = add_model(runs_dir, "slow")
    server = serve()
    with server.http.stream(
        "POST", "/api/generate", json={"model": model, "max_tokens": 4000, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["type"] == "start"
        assert json.loads(next(lines))["type"] == "token"
        assert server.get("/api/models")["worker"]["busy"]
    until(lambda: not server.get("/api/models")["worker"]["busy"])


def test_tokens_come_one_by_one(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    wish = {"model": add_model(runs_dir, "slow"), "max_tokens": 5, "seed": 3, "stream": True}
    with serve().http.stream("POST", "/api/generate", json=wish, headers={"accept-encoding": "gzip"}) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if json.loads(line)["type"] == "token"]
    assert len(times) == 5 and times[-1] - times[0] > 0.3  # five of 0.2 s each; held back, they come together


def test_cancel_by_number(serve: Callable[..., ServerProcess], runs_dir: Path) -> None:
    model = add_model(runs_dir, "slow")
    server = serve()
    with server.http.stream(
        "POST", "/api/generate", json={"model": model, "max_tokens": 4000, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        work = json.loads(next(lines))["work"]
        next(lines)
        assert server.http.post(f"/api/work/{work}/cancel").status_code == 202
        last = [json.loads(line) for line in lines][-1]
    assert (last["type"], last["finish"]) == ("done", "cancelled")
    assert server.http.post("/api/work/999/cancel").status_code == 202


def room(tmp_path: Path, timeout: float = 30) -> Workroom:
    return Workroom(tmp_path / "worker.log", 1, 10**9, timeout, FAKE_WORKER)


def text(id: str, **more: Any) -> dict[str, Any]:
    plain = {"id": id, "path": "x", "kind": "text", "prompt": "", "forced": [], "max_tokens": 3, "seed": 0}
    return plain | {"alternatives": 0} | more


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    async def talk() -> None:
        workroom = room(tmp_path)
        with pytest.raises(Refusal, match="killed by signal 9") as caught:
            await workroom.ask("generate", text("dead"))
        assert caught.value.status == 503
        assert (await workroom.ask("generate", text("well")))["finish"]
        await workroom.close()

    asyncio.run(talk())


def test_a_worker_that_hangs_is_timed_out_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.server.workroom.GRACE_SECONDS", 0.3)

    async def talk() -> None:
        workroom = room(tmp_path, timeout=1.0)
        with pytest.raises(Refusal, match="--worker-timeout") as caught:
            await workroom.ask("generate", text("stuck"))
        assert caught.value.status == 504
        workroom.timeout = 60
        assert (await workroom.ask("generate", text("well")))["finish"]  # by a new one
        await workroom.close()

    asyncio.run(talk())


def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    async def talk() -> None:
        workroom = room(tmp_path)
        many = [asyncio.create_task(workroom.ask("generate", text("slow", max_tokens=1))) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await workroom.ask("generate", text("one more"))
        assert caught.value.status == 429
        for number in range(2, 17):
            workroom.cancel(number)
        answers = await asyncio.gather(*many, return_exceptions=True)
        assert sum(isinstance(answer, dict) for answer in answers) == 1
        await workroom.close()

    asyncio.run(talk())


@pytest.mark.slow  # the worker gives way to whatever else the machine does
def test_the_real_worker_on_real_weights(runs_dir: Path, real_data: Path) -> None:
    """A pretrained model of 260 thousand parameters says what its authors' readers know it to say."""
    config = ServeConfig(runs_dir=runs_dir, token=TOKEN, models_dir=real_data / "models")
    server = create_server(config)
    with TestClient(server.application, base_url="http://127.0.0.1:8000") as client:  # type: ignore[arg-type]
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert "dir:stories260k" in [model["id"] for model in client.get("/api/models").json()["models"]]
        wish = {"model": "dir:stories260k", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
        answer = client.post("/api/generate", json=wish)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["text"].startswith(", there was a little girl named Lily"[: len(told["text"])])
        assert "".join(token["text"] for token in told["tokens"]) == told["text"]
        for token in told["tokens"]:
            best = max(other["logprob"] for other in token["alternatives"])
            assert token["logprob"] == pytest.approx(best) and token["logprob"] <= 0
        kept = [token["id"] for token in told["tokens"][:4]]
        again = client.post("/api/generate", json=wish | {"forced": kept, "max_tokens": 8}).json()
        assert again["text"] == told["text"]
        loaded = client.get("/api/models").json()["worker"]["loaded"]
        assert [model["id"] for model in loaded] == ["dir:stories260k"] and 0.9e6 < loaded[0]["bytes"] < 1.4e6


def test_requests_of_many_threads_all_get_their_own_answer(
    serve: Callable[..., ServerProcess], runs_dir: Path
) -> None:
    model = add_model(runs_dir, "gpt")
    server = serve()
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        answers[seed] = server.post("/api/generate", {"model": model, "seed": seed, "max_tokens": 4}, 200)["text"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {
        s: server.post("/api/generate", {"model": model, "seed": s, "max_tokens": 4}, 200)["text"]
        for s in range(10)
    }
    assert answers == alone and len(set(alone.values())) > 1
