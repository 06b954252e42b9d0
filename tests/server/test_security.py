"""Who is refused, and in which words: each refusal is clear, and none reaches a handler."""

from __future__ import annotations

import errno
import io
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server_process import BEARER, TOKEN, ServerProcess, write_run
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from limner.config.serve import ServeConfig
from limner.server import security
from limner.server.app import create_server
from limner.server.security import read_token


def refused(answer, status: int, code: str, flag: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["flag"]) == (code, flag)
    return error["message"]


def test_no_token_no_answer(make_client: Callable[..., TestClient]) -> None:
    client = make_client(headers={})
    for path in ("/api/runs", "/api/models", "/api/openapi.json", "/api/nothing", "/ws/x"):
        assert "limner serve" in refused(client.get(path), 401, "unauthorized")
    refused(client.post("/api/runs", json={"verb": "pretrain"}), 401, "unauthorized")
    refused(client.get("/api/runs", headers={"authorization": "Bearer wrong"}), 401, "unauthorized")
    refused(client.get("/api/runs", headers={"cookie": "limner_8000=forged"}), 401, "unauthorized")
    assert client.get("/api/health").json() == {"status": "ok", "version": "0.1.0"}  # and nothing of the user's


def test_token_becomes_a_strict_cookie(make_client: Callable[..., TestClient]) -> None:
    client = make_client(headers={})
    answer = client.get(f"/runs/some?x=1&token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/some?x=1")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie and TOKEN not in cookie
    assert client.get("/api/session").json() == {"authenticated": True}
    assert client.get("/api/runs").status_code == 200
    client.delete("/api/session")
    assert client.get("/api/session").json() == {"authenticated": False}
    refused(client.post("/api/session", json={"token": "guess"}), 401, "unauthorized")
    assert client.post("/api/session", json={"token": TOKEN}).status_code == 204
    assert client.get("/api/runs").status_code == 200


def test_wrong_token_in_the_address_gives_no_cookie(make_client: Callable[..., TestClient]) -> None:
    answer = make_client(headers={}).get("/?token=wrong")
    assert answer.status_code == 303 and "set-cookie" not in answer.headers


def test_redirect_stays_here(make_client: Callable[..., TestClient]) -> None:
    for path in ("//evil.example/", "/\\evil.example/", "///evil.example"):
        answer = make_client(headers={}).get(f"http://127.0.0.1:8000{path}?token={TOKEN}")
        assert answer.headers["location"].lstrip("/").startswith("evil.example")
        assert not answer.headers["location"].startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.5:8000", ""]
)
def test_foreign_host(client: TestClient, host: str) -> None:
    assert "--allow-host" in refused(
        client.get("/api/runs", headers={"host": host}), 403, "forbidden", "--allow-host"
    )
    assert client.get("/", headers={"host": host}).status_code == 403  # the page's files as well


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.0.0.1", "LOCALHOST:1"])
def test_own_host(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


def test_allowed_host_and_origin(make_client: Callable[..., TestClient]) -> None:
    client = make_client(allow_host=("lab.example",), allow_origin=("http://localhost:5173",))
    assert client.get("/api/runs", headers={"host": "lab.example:443"}).status_code == 200
    assert client.get("/api/runs", headers={"origin": "http://localhost:5173"}).status_code == 200
    refused(
        client.get("/api/runs", headers={"origin": "http://localhost:5174"}), 403, "forbidden", "--allow-origin"
    )


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:8000", "http://127.0.0.1:9999"]
)
def test_foreign_origin(client: TestClient, origin: str) -> None:
    for call in (client.get, client.post, client.delete):
        refused(call("/api/runs", headers={"origin": origin}), 403, "forbidden", "--allow-origin")


def test_own_origin_and_other_ports_pages(client: TestClient) -> None:
    assert client.get("/api/runs", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    sites = {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}  # an <img> on a page of another port
    refused(client.get("/api/runs", headers=sites), 403, "forbidden", "--allow-origin")
    assert client.get("/api/runs", headers=sites | {"sec-fetch-site": "same-origin"}).status_code == 200


def test_no_cors(client: TestClient) -> None:
    answer = client.options("/api/runs", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def test_websocket_is_guarded_alike(serve: Callable[..., ServerProcess]) -> None:
    server = serve()
    for headers, origin, status in (
        ({}, None, 401),
        (BEARER, "https://evil.example", 403),
        ({"Cookie": f"limner_{server.port}=forged"}, None, 401),
    ):
        with pytest.raises(InvalidStatus) as caught:
            connect(f"{server.address}/ws/runs/x", additional_headers=headers, origin=origin)
        assert caught.value.response.status_code == status
    import socket as network

    with pytest.raises(InvalidStatus) as caught:  # the name in the address is what the Host header says
        wire = network.create_connection(("127.0.0.1", server.port))
        connect("ws://evil.example/ws/runs/x", additional_headers=BEARER, sock=wire)
    assert caught.value.response.status_code == 403 and b"--allow-host" in caught.value.response.body
    own = f"http://127.0.0.1:{server.port}"
    with connect(f"{server.address}/ws/runs/x", additional_headers=BEARER, origin=own) as socket:
        with pytest.raises(Exception):  # noqa: B017  whatever the library says when closed
            socket.recv(60)
        assert socket.close_code == 4404


def test_names_lead_nowhere(client: TestClient, runs_dir: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", "secret", [1.0])
    own = write_run(runs_dir, "own", [1.0])
    (tmp_path / "secret.png").write_bytes(b"x")
    (runs_dir / "link").symlink_to(tmp_path / "elsewhere" / "secret")
    (own / "samples" / "link.png").symlink_to(tmp_path / "secret.png")
    (own / "checkpoints" / "step-000001").symlink_to(tmp_path / "elsewhere")
    up = "..%2f..%2felsewhere%2fsecret"
    for name in (up, "..", ".server", "link", "%2e%2e", "..%5celsewhere", "a" * 3000, "x%00y", "%ff", "ö" * 90):
        for rest in ("", "/events", "/log", "/series", "/config", "/samples/a.png", "/checkpoints"):
            answer = client.get(f"/api/runs/{name}{rest}")
            assert answer.status_code in (404, 405) or answer.json().get("runs") is not None, answer.text
        assert client.delete(f"/api/runs/{name}").status_code in (404, 405)
    for file in ("..%2f..%2fconfig.json", "link.png", "%2e%2e%2fconfig.json", ".hidden"):
        assert client.get(f"/api/runs/own/samples/{file}").status_code == 404
    for checkpoint in ("step-000001", "..%2fsamples", "step-..%2f..%2f"):
        assert client.delete(f"/api/runs/own/checkpoints/{checkpoint}").status_code in (404, 405)
        assert client.post(f"/api/runs/own/checkpoints/{checkpoint}/load").status_code in (404, 405)
    for model in (
        "run:../elsewhere/secret",
        "run:link",
        "dir:../x",
        "run:own/../x",
        "dir:x",
        "file:/etc",
        ":",
        "run:",
    ):
        assert client.post("/api/models/load", json={"model": model}).status_code == 404
    assert (tmp_path / "elsewhere" / "secret" / "config.json").is_file() and (tmp_path / "secret.png").is_file()


def test_page_files_lead_nowhere(client: TestClient, tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<title>index</title>")
    (page / "assets" / "a.js").write_text("1")
    (page / "assets" / "a.js.gz").write_bytes(b"packed")
    (tmp_path / "secret.txt").write_text("secret")
    (page / "link.txt").symlink_to(tmp_path / "secret.txt")
    client.app.state.page_dir = page
    for path in (
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/link.txt",
        "/.hidden",
        "/runs/x",
        "/%00",
        "/a/../../secret",
    ):
        assert client.get(path).text == "<title>index</title>", path
    assert client.get("/assets/missing.js").status_code == 404
    script = client.get("/assets/a.js", headers={"accept-encoding": "identity"})
    assert script.text == "1" and "immutable" in script.headers["cache-control"]
    assert script.headers["content-type"].startswith("text/javascript")
    assert client.get("/").headers["cache-control"] == "no-cache"
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "http" not in policy


def png(width: int, height: int) -> bytes:
    """A picture of this size in a few hundred bytes, as a bomb would be."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


def test_pictures_are_bounded(client: TestClient) -> None:
    def send(content: bytes):
        return client.post("/api/caption", data={"model": "run:x"}, files={"image": ("x.png", io.BytesIO(content))})

    assert "3,600,000,000 pixels" in refused(send(png(60_000, 60_000)), 422, "wrong_input", "--max-megapixels")
    assert "9,000 x 9,000 pixels" in refused(send(png(9_000, 9_000)), 422, "wrong_input", "--max-megapixels")
    for bad in (b"", b"not a picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", png(10, 10)[:20]):
        assert "not a picture" in refused(send(bad), 422, "wrong_input")
    assert "MB" in refused(send(b"\0" * 20_100_000), 413, "too_large", "--max-upload-mb")


def test_two_gigabytes_are_refused_before_they_are_read(serve: Callable[..., ServerProcess]) -> None:
    import socket

    server = serve()
    head = f"POST /api/caption HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    for length in ("Content-Length: 2000000000", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
            wire.sendall((head + f"Content-Type: multipart/form-data; boundary=b\r\n{length}\r\n\r\n").encode())
            sent = 0
            if "chunked" in length:
                form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
                wire.sendall(b"%x\r\n%s\r\n" % (len(form), form))
                block = b"100000\r\n" + b"\0" * 0x100000 + b"\r\n"
                try:
                    while sent < 200_000_000:
                        wire.sendall(block)
                        sent += 0x100000
                except (BrokenPipeError, ConnectionResetError):
                    assert sent < 60_000_000  # the limit, and what the sockets hold
                    continue
            answer = wire.recv(4096)
            assert b" 413 " in answer.split(b"\r\n")[0], answer
            assert sent < 60_000_000


def test_addresses_need_their_flag(client: TestClient, make_client: Callable[..., TestClient]) -> None:
    form = {"model": "run:x", "url": "http://127.0.0.1:1/x.png"}
    refused(client.post("/api/caption", data=form), 403, "forbidden", "--allow-urls")
    allowed = make_client(allow_urls=True)
    assert "inside this network" in refused(allowed.post("/api/caption", data=form), 403, "forbidden")
    for url in ("file:///etc/passwd", "ftp://x/y", "//x", "http://", "http://[", "gopher://x"):
        refused(allowed.post("/api/caption", data=form | {"url": url}), 422, "wrong_input")


def test_token_file_is_the_users_alone(tmp_path: Path) -> None:
    token = read_token(tmp_path)
    assert len(token) >= 32 and read_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert read_token(tmp_path, new=True) != token


def test_a_runs_folder_that_cannot_be_written_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(security, "write_whole", refused)
    server = create_server(ServeConfig(runs_dir=tmp_path))
    assert len(server.token) >= 32 and not (tmp_path / ".server" / "token").exists()


def test_a_weak_token_is_refused() -> None:
    with pytest.raises(ValueError, match="16 characters"):
        ServeConfig(token="short")


def test_open_bind_takes_addresses_but_no_foreign_names(make_client: Callable[..., TestClient]) -> None:
    client = make_client(host="0.0.0.0")
    assert client.get("/api/runs", headers={"host": "192.168.1.7:8000"}).status_code == 200
    refused(client.get("/api/runs", headers={"host": "evil.example"}), 403, "forbidden", "--allow-host")
    refused(client.get("/api/runs", headers={"authorization": ""}), 401, "unauthorized")


def test_closed_websocket_in_process(make_client: Callable[..., TestClient]) -> None:
    client = make_client(headers={})
    with pytest.raises((WebSocketDisconnect, Exception)), client.websocket_connect("/ws/runs/x"):
        raise AssertionError("it was let in")
