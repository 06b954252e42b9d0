"""Fetches a picture from the net, where `--allow-urls` allows it: http and https only, public addresses only."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from limner.server.errors import Refusal

FETCH_SECONDS = 20


def fetch(url: str, most_bytes: int) -> bytes:
    """The bytes behind an address.

    Raises:
        Refusal: another kind of address, one inside this network, unreachable, or too much.
    """
    _check(url)
    request = Request(url, headers={"User-Agent": "limner", "Accept": "image/*"})
    try:
        with build_opener(_Checked).open(request, timeout=FETCH_SECONDS) as answer:
            content = answer.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Refusal("wrong_input", f"{url[:200]} cannot be fetched: {reason}.", field="url") from error
    if len(content) > most_bytes:
        raise Refusal("too_large", f"{url[:200]} is larger than {most_bytes:,} bytes.", field="url")
    return content


class _Checked(HTTPRedirectHandler):
    """A public address must not lead to one inside."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise Refusal("wrong_input", "Only http and https addresses are fetched.", field="url")
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise Refusal("wrong_input", f"There is no host '{host[:100]}'.", field="url") from error
    for address in found:
        if not ipaddress.ip_address(str(address).partition("%")[0]).is_global:
            message = f"'{host[:100]}' is an address inside this network; only public ones are fetched."
            raise Refusal("forbidden", message, field="url")
