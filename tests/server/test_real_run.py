"""The real trainer and the real worker behind the server: a GPT is pretrained, steered and tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from server_process import BEARER, TOKEN, until
from starlette.testclient import TestClient

from limner.config.serve import ServeConfig
from limner.server.app import create_server

SETTINGS = {
    "corpus": "tiny",
    "tokenizer": "byte",
    "context_length": 32,
    "width": 32,
    "num_heads": 2,
    "num_layers": 1,
    "batch_size": 4,
    "steps": 400,
    "eval_freq": 50,
    "eval_iters": 1,
    "checkpoint_freq": 100,
    "sample_tokens": 8,
    "compile": False,
    "device": "cpu",
    "precision": "fp32",
    "save": True,
}


@pytest.mark.slow
def test_pretrain_steer_and_try(runs_dir: Path, tmp_path: Path) -> None:
    server = create_server(ServeConfig(runs_dir=runs_dir, token=TOKEN))
    with TestClient(server.application, base_url="http://127.0.0.1:8000", headers=BEARER) as client:  # type: ignore[arg-type]

        def ask(method: str, path: str, status: int = 200, **body: Any) -> Any:
            answer = client.request(method, f"/api{path}", **body)
            assert answer.status_code == status, answer.text
            return answer.json()

        def run() -> dict[str, Any]:
            found = ask("GET", "/runs/tiny")
            assert found["status"] not in ("failed", "crashed"), found["log_tail"]
            return found

        settings = SETTINGS | {"cache_dir": str(tmp_path / "cache")}
        ask("POST", "/runs", 201, json={"verb": "pretrain", "name": "tiny", "config": settings})
        until(lambda: run()["step"] >= 20)
        ask("POST", "/runs/tiny/pause", 202)
        until(lambda: run()["status"] == "paused")
        asked = ask("POST", "/runs/tiny/sample?wait=20", 202, json={"prompt": "The", "settings": {"max_tokens": 5}})
        assert asked["event"]["prompt"] == "The" and asked["event"]["text"]
        ask("POST", "/runs/tiny/stop", 202)
        stopped = until(lambda: (found := run())["status"] == "stopped" and found)
        assert stopped["resumable"] and stopped["step"] < 400
        config = json.loads((runs_dir / "tiny" / "config.json").read_text())["config"]
        assert config["save"] and config["save_total_limit"] == 1
        ask("POST", "/runs/tiny/resume", 202)
        done = until(lambda: (found := run())["status"] == "completed" and found)
        assert (done["step"], done["model"], len(done["attempts"])) == (400, True, 2)
        assert {"loss", "tokens_per_second", "validation/eval_loss"} <= set(done["metrics"])
        steps = ask("GET", "/runs/tiny/series?metrics=loss&points=4000")["tables"]["metrics"]["segments"]
        assert [step for segment in steps for step in segment["axes"]["step"]] == list(range(1, 401))
        samples = ask("GET", "/runs/tiny/samples")
        assert 0 in samples["steps"] and 400 in samples["steps"]
        told = ask(
            "POST", "/generate", json={"model": "run:tiny", "prompt": "The", "temperature": 0, "max_tokens": 6}
        )
        assert len(told["tokens"]) == 6 and told["text"] == "".join(token["text"] for token in told["tokens"])
        names = [checkpoint["name"] for checkpoint in ask("GET", "/runs/tiny/checkpoints")["checkpoints"]]
        assert {"step-000100", "step-000400"} <= set(names)
        early = ask("POST", "/runs/tiny/checkpoints/step-000100/load")
        assert (early["kind"], early["model"]) == ("text", "run:tiny/step-000100")
        wish = {"model": "run:tiny/step-000100", "prompt": "The", "temperature": 0, "max_tokens": 6}
        before = ask("POST", "/generate", json=wish)
        first = before["tokens"][0]["logprob"]
        assert first != pytest.approx(told["tokens"][0]["logprob"], abs=1e-4)  # other weights
        last = ask("POST", "/generate", json=wish | {"model": "run:tiny/step-000400"})
        best = done["best"]["step"]
        if best == 400:  # the finished model is the best checkpoint
            assert last["tokens"][0]["logprob"] == pytest.approx(told["tokens"][0]["logprob"], abs=1e-4)
