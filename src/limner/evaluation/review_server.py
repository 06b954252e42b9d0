"""The review's web server: this machine only, a token, one page, nothing from elsewhere."""

from __future__ import annotations

import hmac
import io
import json
import secrets
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from limner.data.images import load_image
from limner.evaluation.quality.new_set import picture_bytes
from limner.evaluation.review import Review

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
MAX_BODY = 1 << 20
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one review on 127.0.0.1."""

    daemon_threads = True

    def __init__(self, review: Review, port: int) -> None:
        """Binds the port; 0 takes any free one. Raises OSError where it is taken."""
        self.review = review
        self.token = secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def address(self) -> str:
        """What a person opens; the token in it becomes a cookie."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._handle(self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: the page tells what a person needs to know."""

    def _handle(self, method: Any) -> None:
        try:
            self._check_host()
            method(urlsplit(self.path))
        except _Refused as refusal:
            self.close_connection = True  # a body may be unread
            self._json({"error": str(refusal)}, refusal.status)
        except RecursionError:  # brackets within brackets within brackets
            self._json({"error": "A decision is not nested."}, HTTPStatus.BAD_REQUEST)
        except (ValueError, OSError) as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def _check_host(self) -> None:
        """A hostile name that resolves to 127.0.0.1 is not a name of ours; nor is another page's origin."""
        names = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        if self.headers.get("Host") not in names:
            raise _Refused(HTTPStatus.FORBIDDEN, "This server is called by another name; open the printed address.")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in names}:
            raise _Refused(HTTPStatus.FORBIDDEN, "Another page may not ask this server.")

    def _signed_in(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        given = cookies.get(self._cookie)
        return given is not None and hmac.compare_digest(given.value.encode(), self.server.token.encode())

    @property
    def _cookie(self) -> str:
        return f"limner_review_{self.server.server_port}"  # cookies do not tell ports apart

    def _require_sign_in(self) -> None:
        if not self._signed_in():
            raise _Refused(HTTPStatus.UNAUTHORIZED, "Open the address that `limner review` printed.")

    def _get(self, url: Any) -> None:
        token = parse_qs(url.query).get("token", [""])[0]
        if url.path == "/" and token:
            if not hmac.compare_digest(token.encode(), self.server.token.encode()):
                raise _Refused(HTTPStatus.UNAUTHORIZED, "The token is wrong; open the printed address.")
            cookie = f"{self._cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, {"Location": "/", "Set-Cookie": cookie})
            return
        self._require_sign_in()
        if url.path in _PAGE:
            name, page_kind = _PAGE[url.path]
            self._send((files("limner.evaluation") / "review_page" / name).read_bytes(), page_kind)
        elif url.path == "/favicon.ico":  # browsers ask for it unasked
            self._send(b"", "image/png", HTTPStatus.NO_CONTENT)
        elif url.path == "/api/state":
            self._json(self.server.review.state())
        elif url.path.startswith("/api/picture/"):
            self._json(self.server.review.picture(self._number(url.path)))
        elif url.path.startswith("/picture/"):
            record, _ = self.server.review.records[self._number(url.path)]
            data = picture_bytes(record)
            kind = _media_type(data)
            self._send(data if kind else _as_jpeg(data), kind or "image/jpeg")
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _post(self, url: Any) -> None:
        self._require_sign_in()
        if not url.path.startswith("/api/picture/"):
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here.")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A decision is JSON.")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "A decision is at most a megabyte long.")
        body = json.loads(self.rfile.read(int(length)))
        body = body if isinstance(body, dict) else {}
        decision, captions = body.get("decision", ""), body.get("captions")
        if decision not in ("accept", "edit", "reject", None):
            raise ValueError("A decision is accept, edit, reject or null.")
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise ValueError("Captions are a list of texts.")
        self._json({"decision": self.server.review.decide(self._number(url.path), decision, captions)})

    def _number(self, path: str) -> int:
        last = path.rsplit("/", 1)[-1]
        if not (last.isascii() and last.isdigit() and int(last) < len(self.server.review.records)):
            raise _Refused(HTTPStatus.NOT_FOUND, f"There is no picture {last[:20]}.")
        return int(last)

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(
        self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _media_type(data: bytes) -> str | None:
    """Of pictures that browsers show, by their bytes and never by a name: HTML named .jpg is no page here."""
    signatures = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
    found = next((name for signature, name in signatures.items() if data.startswith(signature)), None)
    if found is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "webp"
    return f"image/{found}" if found else None


def _as_jpeg(data: bytes) -> bytes:
    """TIFF and other kinds, for a browser. Raises ValueError where it is no picture."""
    buffer = io.BytesIO()
    load_image(data).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
