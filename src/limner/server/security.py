"""Who may ask: Host, Origin and token, checked before anything else, on HTTP and WebSocket alike.

A page of another site can make a browser send requests here. What stops it: the Host header must be a name of ours
(a hostile domain that resolves to 127.0.0.1 is not), the Origin must be our own page, and the token stands in a
cookie that browsers keep to themselves (HttpOnly) and send only from our own page (SameSite=Strict).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers

from limner.config.serve import ServeConfig, is_loopback
from limner.server.errors import Refusal
from limner.whole_files import write_whole

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("limner.server")

PUBLIC = frozenset({"/api/health", "/api/session"})
"""What needs no token. The page's files need none either: they hold nothing of the user's."""
BODY_BYTES = 2 << 20
"""The most bytes of a request's body, where it is not a picture."""
UPLOAD_PATHS = frozenset({"/api/caption"})
_FORM_BYTES = 64 << 10  # what a form may hold around its picture

PAGE_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Mantine sets style attributes
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "manifest-src 'self'",
        "worker-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ]
)
_HEADERS = [
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def read_token(state_dir: Path, new: bool = False) -> str:
    """The server's secret: random, made once, readable by the user alone, and kept with the runs where that can be
    (a folder that cannot be written: it is good for this start only)."""
    path = state_dir / "token"
    token = secrets.token_urlsafe(24)
    try:
        if not new and path.exists() and len(kept := path.read_text().strip()) >= 16:
            return kept
        state_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, token, mode=0o600)
    except OSError as error:
        log.warning("The token cannot be kept (%s); this start's is good for no other.", error)
    return token


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: Application, config: ServeConfig, token: str) -> None:
        self.app, self.config, self.token = app, config, token
        # The cookie proves that its bearer had the token, and is not the token.
        self.cookie_value = hmac.new(token.encode(), b"limner session", hashlib.sha256).hexdigest()
        self.names = {"localhost", *(name.lower() for name in config.allow_host)}
        if not config.loopback:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower(), config.host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        scope["limner_cookie"] = (self.cookie_name(headers), self.cookie_value)
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            path = scope["path"]
            private = scope["type"] == "websocket" or path.startswith(("/api/", "/ws/")) or path in ("/api", "/ws")
            signed_in = self.signed_in(headers)
            scope["limner_signed_in"] = signed_in
            if private and not signed_in and path not in PUBLIC:
                raise Refusal(
                    "unauthorized",
                    "This needs the token: open the address that `limner serve` printed.",
                )
            limit = self._limit(path)
            if int(headers.get("content-length") or 0) > limit:
                raise self._too_large(limit)
        except ValueError:  # a Content-Length that is no number
            return await _refuse(scope, receive, send, Refusal("wrong_input", "Content-Length is no number."))
        except Refusal as refusal:
            return await _refuse(scope, receive, send, refusal)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        if await self._exchange(scope, headers, receive, send):
            return None
        return await self._bounded(scope, receive, _with_headers(send), limit)

    # -- the checks --------------------------------------------------------------------------------------------

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = _host_name(host)
        if name in self.names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        # An address cannot be rebound by a hostile name server, as a name can.
        if address is not None and (address.is_loopback or not self.config.loopback):
            return
        raise Refusal(
            "forbidden",
            f"This server does not answer to the name '{name[:99]}': start it with --allow-host to allow it.",
            flag="--allow-host",
        )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        host = headers.get("host", "")
        own = (f"http://{host}", f"https://{host}")
        if origin is not None and origin not in own and origin not in self.config.allow_origin:
            raise Refusal(
                "forbidden",
                f"Pages of '{origin[:99]}' may not talk to this server: start it with --allow-origin to allow it.",
                flag="--allow-origin",
            )
        # A page of another port of this host is "same-site": its requests would carry the cookie.
        site = headers.get("sec-fetch-site", "none")
        page = scope["type"] == "http" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and origin is None and not page:
            raise Refusal("forbidden", "Requests made by other pages are refused.", flag="--allow-origin")

    def signed_in(self, headers: Headers) -> bool:
        bearer = headers.get("authorization", "")
        if bearer.startswith("Bearer ") and self.is_token(bearer.removeprefix("Bearer ").strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name(headers))
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self.cookie_value.encode())

    def is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    @staticmethod
    def cookie_name(headers: Headers) -> str:
        """Cookies of one host are shared by its ports, so the name holds the port."""
        _, _, port = headers.get("host", "").rpartition(":")
        return f"limner_{port if port.isdigit() else 80}"

    # -- the exchange of the token for the cookie ----------------------------------------------------------------

    async def _exchange(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> bool:
        """Answers a page address that carries the token: the same address without it, and the cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for name, value in query if name == "token"), None)
        if given is None or scope["method"] != "GET" or scope["path"].startswith("/api"):
            return False
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # One slash only: "//elsewhere" would be an address of another site.
        path = "/" + scope.get("raw_path", b"/").decode("latin-1").lstrip("/\\")
        location = path + ("?" + rest if rest else "")
        answer = [(b"location", location.encode("latin-1", "replace")), (b"cache-control", b"no-store")]
        if self.is_token(given):
            answer.append((b"set-cookie", session_cookie(scope).encode()))
        await _with_headers(send)({"type": "http.response.start", "status": 303, "headers": answer})
        await send({"type": "http.response.body", "body": b""})
        return True

    # -- bounded bodies ------------------------------------------------------------------------------------------

    def _limit(self, path: str) -> int:
        return self.config.max_upload_mb * 1_000_000 + _FORM_BYTES if path in UPLOAD_PATHS else BODY_BYTES

    def _too_large(self, limit: int) -> Refusal:
        if limit == BODY_BYTES:
            return Refusal("too_large", f"The request is larger than {limit:,} bytes.")
        size = self.config.max_upload_mb
        return Refusal(
            "too_large",
            f"The picture is larger than {size} MB; send a smaller one, or start with --max-upload-mb.",
            flag="--max-upload-mb",
        )

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """The application, for a body that does not tell its length: it is counted as it comes."""
        received, overflown = 0, False

        async def counted() -> Message:
            nonlocal received, overflown
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                overflown = True
                raise self._too_large(limit)
            return message

        async def answered(message: Message) -> None:
            # Whatever the application makes of a body that breaks off, the answer is that it was too large.
            if not overflown:
                await send(message)
            elif message["type"] == "http.response.start":
                await _refuse(scope, receive, send, self._too_large(limit))

        await self.app(scope, counted, answered)


def session_cookie(scope: Scope, clear: bool = False) -> str:
    """The Set-Cookie header that signs in, or out."""
    name, value = scope["limner_cookie"]
    kept = "; Max-Age=0" if clear else "; Max-Age=2592000"
    return f"{name}={'' if clear else value}; Path=/; HttpOnly; SameSite=Strict{kept}"


def _host_name(host: str) -> str:
    """The Host header without its port: "[::1]:8000" gives "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", [])}
            message["headers"] = [
                *message.get("headers", []),
                *((name, value) for name, value in _HEADERS if name not in present),
            ]
        await send(message)

    return wrapped


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Answers with the refusal; a WebSocket's handshake gets it as its HTTP response."""
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 4403})
            return
        kind = "websocket.http.response"
    body = json.dumps(refusal.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not wanted
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers + _HEADERS})
    await send({"type": f"{kind}.body", "body": body})


def allowed_hint(config: ServeConfig) -> str:
    """One sentence for the terminal on who can reach the server."""
    if is_loopback(config.host):
        return "Only this machine can reach it (--host opens it to others)."
    return f"Others can reach it at {config.host}, with the token; use a trusted network: it speaks plain HTTP."
