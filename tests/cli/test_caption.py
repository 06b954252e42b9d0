"""``limner caption``: what goes in, what comes out, and what is said when it cannot."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_captioners import toy_captioner, toy_picture

import limner
from limner.cli.main import main
from limner.models import stock


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "toy"
    stock.save_captioner(toy_captioner(text="llama_untied"), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    (tmp_path / "deeper").mkdir()
    paths = [tmp_path / "b.png", tmp_path / "a c.jpg", tmp_path / "deeper" / "d.webp"]
    for seed, path in enumerate(paths):
        toy_picture(seed).save(path)
    (tmp_path / "notes.txt").write_text("no picture")
    return paths


@pytest.fixture
def expected(model: Path, pictures: list[Path]) -> dict[str, str]:
    captioner = limner.load_captioner(model, device="cpu")
    return {str(path): captioner.caption(path) for path in pictures}


def _lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_files_folders_and_patterns(
    model: Path, pictures: list[Path], expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    b, a, deep = map(str, pictures)
    assert main(["caption", str(model), b, a]) == 0
    assert _lines(capsys) == [[b, expected[b]], [a, expected[a]]]
    assert main(["caption", str(model), str(pictures[0].parent), "--batch-size", "2"]) == 0
    assert _lines(capsys) == [[name, expected[name]] for name in (a, b, deep)]
    assert main(["caption", str(model), str(pictures[0].parent / "*.[jp][pn]g")]) == 0
    assert _lines(capsys) == [[name, expected[name]] for name in (a, b)]


def test_no_picture_of_a_folder_is_left_out_in_silence(
    model: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jpeg = pictures[1].read_bytes()
    folder = tmp_path / "phone"
    folder.mkdir()
    for name in ("a.jfif", "b.jpe", "c.JPG"):
        (folder / name).write_bytes(jpeg)
    for name in ("d.HEIC", "e.jxl"):
        (folder / name).write_bytes(b"")
    assert main(["caption", str(model), str(folder)]) == 0
    out, err = capsys.readouterr()
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == ["a.jfif", "b.jpe", "c.JPG"]
    assert "left out 2 of 5 pictures (d.HEIC, e.jxl); convert to JPEG." in err


def test_json(model: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(model), str(pictures[0]), "--json", "--num-beams", "1", "--max-length", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    fields = ["path", "caption", "tokens", "token_logprobs", "mean_logprob", "score", "ending", "seconds"]
    assert list(answer) == fields
    (caption,) = limner.load_captioner(model, device="cpu").describe([pictures[0]], num_beams=1, max_new_tokens=1)
    assert (answer["caption"], answer["tokens"]) == (caption.text, caption.tokens)
    assert answer["score"] == pytest.approx(caption.score, abs=1e-5)
    assert answer["mean_logprob"] == pytest.approx(caption.mean_logprob, abs=1e-5)
    assert answer["token_logprobs"] == pytest.approx(caption.token_logprobs, abs=1e-5)
    assert answer["ending"] == caption.ending == "length"
    assert len(answer["tokens"]) == 1 and answer["seconds"] > 0


def test_standard_input(
    model: Path,
    pictures: list[Path],
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pictures[0].read_bytes())))
    assert main(["caption", str(model), "-"]) == 0
    assert _lines(capsys) == [["-", expected[str(pictures[0])]]]
    monkeypatch.setattr("limner.cli.caption.MAX_FETCH", 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pictures[0].read_bytes())))
    assert main(["caption", str(model), "-"]) == 1
    assert "- is larger than" in capsys.readouterr().err


def test_abstention(model: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(model), str(pictures[0]), "--abstain-below", "0"]) == 0
    assert _lines(capsys) == [[str(pictures[0]), "(not sure)"]]


def test_names_that_would_break_the_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a\tb\nc.png"
    toy_picture().save(path)
    assert main(["caption", str(model), str(path)]) == 0
    ((shown, _),) = _lines(capsys)
    assert shown == str(path).replace("\t", "\\t").replace("\n", "\\n")


@pytest.fixture
def site(pictures: list[Path]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/a.png")
                self.end_headers()
            elif self.path == "/huge":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"x" * 3000)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(pictures[0].read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses(
    model: Path,
    site: str,
    expected: dict[str, str],
    pictures: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["caption", str(model), f"{site}/a.png", "--allow-urls"]) == 0
    assert _lines(capsys) == [[f"{site}/a.png", expected[str(pictures[0])]]]
    assert main(["caption", str(model), f"{site}/a.png"]) == 1
    assert "add --allow-urls" in capsys.readouterr().err
    assert main(["caption", str(model), f"{site}/away", "--allow-urls"]) == 1
    assert "only http and https" in capsys.readouterr().err
    assert main(["caption", str(model), f"{site}/a b.png", "--allow-urls"]) == 1
    assert "a b.png cannot be fetched" in capsys.readouterr().err
    monkeypatch.setattr("limner.cli.caption.MAX_FETCH", 2000)
    assert main(["caption", str(model), f"{site}/huge", "--allow-urls"]) == 1
    assert "larger than" in capsys.readouterr().err
    assert main(["caption", str(model), "ftp://127.0.0.1/a.png", "--allow-urls"]) == 1
    assert "kind ftp" in capsys.readouterr().err


def test_a_bad_picture_is_named_and_the_others_are_captioned(
    model: Path, pictures: list[Path], expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = pictures[0].parent / "broken.jpg"
    broken.write_bytes(pictures[1].read_bytes()[:300])
    good = str(pictures[0])
    assert main(["caption", str(model), str(broken), good]) == 1
    said = capsys.readouterr()
    assert said.out == f"{good}\t{expected[good]}\n"
    assert said.err.count("\n") == 1 and str(broken) in said.err
    assert main(["caption", str(model), str(broken), good, "--skip-bad-images"]) == 0
    assert "skipped 1 of 2 pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{model}", "{here}/nothing.png"], "There is no file or folder {here}/nothing.png."),
        (["{model}", "{here}/*.tiff"], "No file fits the pattern {here}/*.tiff."),
        (["{model}", "{here}/empty"], "The folder {here}/empty holds no pictures."),
        (["{model}"], "Name at least one picture"),
        (["{here}/no-model", "{here}/p.png"], "There is no folder {here}/no-model"),
        (["{here}/empty", "{here}/p.png"], "lacks config.json"),
        (["nobody/nothing", "{here}/p.png"], "nobody/nothing is not on this machine"),
    ],
)
def test_one_sentence_and_no_traceback(
    arguments: list[str], sentence: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    toy_picture().save(tmp_path / "p.png")
    filled = [word.format(model=model, here=tmp_path) for word in arguments]
    assert main(["caption", *filled]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert sentence.format(here=tmp_path) in said.err
