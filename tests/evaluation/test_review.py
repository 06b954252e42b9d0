"""``limner review``: decisions that survive, a data set that trains, a server that answers nobody else."""

from __future__ import annotations

import errno
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_captioners import toy_picture

from limner.data.folder import ImageCaptionDataset
from limner.data.records import Record
from limner.evaluation.review import Review
from limner.evaluation.review_server import ReviewServer


@pytest.fixture
def records(tmp_path: Path) -> list[tuple[Record, Any]]:
    """Six pictures: the same name in two folders, a TIFF, a hostile caption, and one without a good ending."""
    found: list[tuple[Record, Any]] = []
    for i, name in enumerate(["a/1.png", "b/1.png", "c.tif", "d <b>.png", "e.png", "f"]):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        toy_picture(i).save(path, "TIFF" if name.endswith("tif") else "PNG")
        captions = [f"A picture of number {i} here.", "<img src=x onerror=alert(1)>"]
        found.append((Record(path, captions, name), "validation" if i == 4 else "train"))
    return found


def test_decisions_survive_and_make_a_data_set(tmp_path: Path, records: list[tuple[Record, Any]]) -> None:
    out = tmp_path / "out"
    review = Review(records, out)
    assert review.state()["at"] == 0
    assert review.decide(0, "accept", []) == "accept"
    assert review.decide(1, "edit", ["  A new\tcaption. ", ""]) == "edit"
    assert review.decide(2, "edit", records[2][0].captions) == "accept"  # nothing was changed
    assert review.decide(3, "reject", []) == "reject"
    assert review.decide(4, "accept", []) == "accept"
    with pytest.raises(ValueError, match="at least one caption"):
        review.decide(5, "edit", ["  "])
    with open(out / "decisions.jsonl", "a") as file:
        file.write('{"image_id": "f", "deci')  # killed while writing
    review.close()
    again = Review(records, out)
    decided = [item["decision"] for item in again.state()["items"]]
    assert decided == ["accept", "edit", "accept", "reject", "accept", None]
    assert again.state()["at"] == 5
    assert again.picture(1)["captions"] == ["A new caption."]
    kept = {record.image_id: record for record in ImageCaptionDataset(out)}
    assert sorted(tuple(record.captions) for record in kept.values()) == sorted(
        [tuple(records[i][0].captions) for i in (0, 2, 4)] + [("A new caption.",)]
    )
    assert {record.split for record in kept.values()} == {"train", "validation"}
    copied = {Path(str(record.image)).read_bytes() for record in kept.values()}
    assert copied == {records[i][0].image.read_bytes() for i in (0, 1, 2, 4)}  # type: ignore[union-attr]
    assert again.decide(1, None, []) is None and again.decide(4, "reject", []) == "reject"
    assert len(ImageCaptionDataset(out)) == 2
    with pytest.raises(ValueError, match="something else than a review"):
        Review(records, tmp_path / "source")


def reviewed(out: Path) -> dict[str, list[str]]:
    rows = [json.loads(line) for file in out.glob("*/metadata.jsonl") for line in file.read_text().splitlines()]
    return {row["image_id"]: row["captions"] for row in rows}


def test_a_review_is_of_one_data_set_and_of_its_captions(tmp_path: Path, records: list[tuple[Record, Any]]) -> None:
    out = tmp_path / "out"
    review = Review(records, out, {"dataset": ["x"], "captions": None})
    review.decide(0, "accept", [])
    review.decide(1, "accept", [])
    with pytest.raises(ValueError, match="under review in another window"):
        Review(records, out, {"dataset": ["x"], "captions": None})
    review.close()
    for other in ({"dataset": ["y"], "captions": None}, {"dataset": ["x"], "captions": "preds.json"}):
        with pytest.raises(ValueError, match="holds a review of something else"):
            Review(records, out, other)
    changed = [(replace(records[0][0], captions=["Said anew."]), records[0][1]), *records[1:]]
    again = Review(changed, out, {"dataset": ["x"], "captions": None})
    assert [item["decision"] for item in again.state()["items"]][:2] == [None, "accept"]
    assert again.picture(0)["captions"] == ["Said anew."]
    assert list(reviewed(out)) == ["b/1.png"]
    assert "they are asked of again: a/1.png" in again.remarks[0]


def test_a_review_goes_on_where_no_file_can_be_locked(
    tmp_path: Path, records: list[tuple[Record, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("limner.runs.folder.fcntl.flock", no_locks)
    for expected in (None, "accept"):
        review = Review(records, tmp_path / "out", {"dataset": ["x"]})
        assert review.state()["items"][0]["decision"] == expected
        review.decide(0, "accept", [])
        review.close()
    assert json.loads((tmp_path / "out/review-of").read_text()) == {"dataset": ["x"]}


def test_to_accept_what_was_edited_keeps_the_edit(tmp_path: Path, records: list[tuple[Record, Any]]) -> None:
    review = Review(records, tmp_path / "out")
    review.decide(0, "edit", ["My careful caption."])
    assert review.decide(0, "accept", []) == "edit"
    assert reviewed(tmp_path / "out") == {"a/1.png": ["My careful caption."]}
    review.decide(0, None, [])
    assert review.decide(0, "accept", []) == "accept"  # taken back, the page shows the original
    assert reviewed(tmp_path / "out") == {"a/1.png": records[0][0].captions}


def test_a_picture_that_cannot_be_read_stops_no_other(tmp_path: Path, records: list[tuple[Record, Any]]) -> None:
    out = tmp_path / "out"
    gone = Path(str(records[1][0].image))
    data = gone.read_bytes()
    gone.write_bytes(b"")
    review = Review(records, out)
    review.decide(0, "accept", [])
    with pytest.raises(ValueError, match="is empty"):
        review.decide(1, "accept", [])
    review.decide(2, "accept", [])
    assert [item["decision"] for item in review.state()["items"]][:3] == ["accept", None, "accept"]
    assert set(reviewed(out)) == {"a/1.png", "c.tif"}
    gone.write_bytes(data)
    review.decide(1, "accept", [])
    review.close()
    shutil.rmtree(out / "train")  # what is decided is written when the review opens
    gone.write_bytes(b"")
    again = Review(records, out)
    assert set(reviewed(out)) == {"a/1.png", "c.tif"}
    assert again.state()["at"] == 1 and "b/1.png was decided, but its picture cannot be read" in again.remarks[0]


def test_a_narrower_review_leaves_the_others_in_the_set(tmp_path: Path, records: list[tuple[Record, Any]]) -> None:
    review = Review(records, tmp_path / "out")
    for number in range(6):
        review.decide(number, "edit", [f"by hand {number}"])
    review.close()
    before = reviewed(tmp_path / "out")
    narrow = Review(records[2:3], tmp_path / "out")
    narrow.decide(0, "edit", ["by another hand"])
    assert reviewed(tmp_path / "out") == before | {"c.tif": ["by another hand"]}
    assert len(ImageCaptionDataset(tmp_path / "out")) == 6


@pytest.fixture
def server(tmp_path: Path, records: list[tuple[Record, Any]]) -> Iterator[ReviewServer]:
    one = ReviewServer(Review(records, tmp_path / "out"), 0)
    threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def ask(
    server: ReviewServer, path: str, body: Any = None, signed_in: bool = True, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    if signed_in:
        headers.setdefault("Cookie", f"limner_review_{server.server_port}={server.token}")
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def test_the_server_answers_only_who_has_the_token(server: ReviewServer) -> None:
    own = f"127.0.0.1:{server.server_port}"
    paths = ["/", "/review.js", "/api/state", "/api/picture/0", "/picture/0"]
    for path in paths:
        assert ask(server, path, signed_in=False)[0] == 401
        assert ask(server, path, Cookie=f"limner_review_{server.server_port}=wrong", signed_in=False)[0] == 401
        assert ask(server, path, Host="evil.example")[0] == 403
        assert ask(server, path, Origin="http://evil.example")[0] == 403
        status, headers, _ = ask(server, path, Origin=f"http://{own}")
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    decision = {"decision": "accept", "captions": []}
    assert ask(server, "/api/picture/0", decision, signed_in=False)[0] == 401
    assert ask(server, "/api/picture/0", decision, Origin="null")[0] == 403
    assert ask(server, "/?token=wrong", signed_in=False)[0] == 401
    status, headers, _ = ask(server, f"/?token={server.token}", signed_in=False)
    assert status == 303 and headers["Location"] == "/"
    assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/picture/6", None, 404),
        ("/api/picture/-1", None, 404),
        ("/picture/../../etc/passwd", None, 404),
        ("/etc/passwd", None, 404),
        ("/picture/0", {"decision": "accept", "captions": []}, 404),
        ("/api/picture/0", {"decision": "maybe", "captions": []}, 400),
        ("/api/picture/0", {"captions": []}, 400),
        ("/api/picture/0", {"decision": "edit", "captions": [1]}, 400),
        ("/api/picture/0", {"decision": "edit", "captions": ["x" * 2001]}, 400),
        ("/api/picture/0", [], 400),
        ("/api/picture/0", "no json", 400),
        ("/api/picture/0", "[" * 100_000, 400),
        ("/api/picture/0", "x" * (1 << 20) + "x", 413),
    ],
)
def test_nonsense_is_refused(server: ReviewServer, path: str, body: Any, status: int) -> None:
    try:
        found, _, answer = ask(server, path, body)
    except (BrokenPipeError, ConnectionResetError):
        found, answer = 413, b'{"error": "closed while sending"}'  # it does not read what is too long
    assert found == status and json.loads(answer)["error"]
    assert all(item["decision"] is None for item in server.review.state()["items"])


def test_pictures_are_served_by_what_they_are(server: ReviewServer) -> None:
    kinds = [ask(server, f"/picture/{i}")[1]["Content-Type"] for i in range(6)]
    assert kinds == ["image/png", "image/png", "image/jpeg", "image/png", "image/png", "image/png"]
    assert ask(server, "/picture/2")[2].startswith(b"\xff\xd8\xff")


@pytest.mark.browser
def test_a_person_reviews_by_keyboard(server: ReviewServer, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[str] = []
        foreign: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: foreign.append(r.url) if "127.0.0.1" not in r.url else None)
        page.goto(server.address)
        expect = playwright.expect
        counts, name = page.locator("#counts"), page.locator("#name")
        expect(counts).to_have_text("1 of 6; 0 decided")
        assert "token" not in page.url
        page.keyboard.press("Enter")  # accept
        expect(counts).to_have_text("2 of 6; 1 decided")
        page.keyboard.press("e")
        page.locator("#captions").press("Control+a")
        page.keyboard.type("A dog by the e and x keys.")  # keys are text while editing
        page.keyboard.press("Control+Enter")
        expect(name).to_have_text("c.tif")
        page.keyboard.press("x")
        expect(counts).to_have_text("4 of 6; 3 decided")
        expect(name).to_have_text("d <b>.png")
        assert page.locator("#captions").input_value().endswith("<img src=x onerror=alert(1)>")
        page.keyboard.press("u")  # takes the rejection back
        expect(counts).to_have_text("3 of 6; 2 decided")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#decision")).to_have_text("Edited")
        page.keyboard.press("n")
        expect(name).to_have_text("c.tif")
        assert page.evaluate("document.querySelector('#picture').naturalWidth") == 56
        page.keyboard.press("e")
        page.locator("#captions").fill("")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#message")).to_contain_text("needs at least one caption")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Reject").click()
        expect(counts).to_have_text("4 of 6; 3 decided")
        page.reload()
        expect(name).to_have_text("d <b>.png")  # the first without a decision
        browser.close()
    assert foreign == []
    assert [fault for fault in faults if "400" not in fault] == []
    decided = [item["decision"] for item in server.review.state()["items"]]
    assert decided == ["accept", "edit", "reject", None, None, None]
    kept = {tuple(record.captions) for record in ImageCaptionDataset(tmp_path / "out")}
    assert ("A dog by the e and x keys.",) in kept and len(kept) == 2
