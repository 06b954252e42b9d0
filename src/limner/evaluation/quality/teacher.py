"""A teacher: a vision model behind an OpenAI-compatible endpoint, asked about one picture at a time.

Networks fail in many ways. What may pass (429, 5xx, a timeout, a broken or truncated answer) is asked again, after
a pause that doubles and is drawn at random up to its length, so that many askers do not return all at once; what
will not pass (a wrong key, an unknown model) ends the work; a picture that is refused (400, 413, 422) is left out.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from limner.data.images import ImageSource, load_image

GUIDELINE = (
    "Describe this picture for someone who cannot see it, in one plain sentence of about ten words. Say what is "
    "shown and what happens. Do not guess who a person is, nor their name, origin, religion or health. Do not copy "
    "text that is in the picture. Count no further than two; say several or many instead. Do not begin with words "
    'like "an image of". Answer with the sentence only.'
)
"""The documented guideline for captions: the default prompt."""
REWRITE = "\n\nA caption that was written for this picture before: {caption}\nKeep what is right in it."
"""Added to the prompt where captions are rewritten."""
MAX_ANSWER_BYTES = 1_000_000
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_FATAL = {401, 402, 403, 404, 405, 410}


class Refused(Exception):
    """This picture will not be answered; others may."""


class Unreachable(OSError):
    """No answer after all retries."""


class Misconfigured(Unreachable):
    """No answer ever to be had: a wrong key, model or address."""


@dataclass(frozen=True)
class Answer:
    """What the teacher said of a picture."""

    caption: str
    raw: str
    usage: dict[str, Any]
    """Tokens, as the endpoint counts them."""
    attempts: int


@dataclass
class Teacher:
    """An endpoint with its manners: how fast, how patient, how persistent."""

    endpoint: str
    """The address below which ``/chat/completions`` is; given with or without it."""
    model: str
    api_key: str | None = None
    timeout: float = 60.0
    """Seconds for one request."""
    retries: int = 6
    """Times that a failed request is sent again."""
    max_pause: float = 60.0
    """Seconds; the longest pause before a retry, a longer Retry-After excepted."""
    max_tokens: int = 120
    max_side: int = 512
    """Pictures are sent as JPEG, at most this long on a side."""
    rate: Rate | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"--endpoint is '{self.endpoint}'; expected an address like http://localhost:8000/v1.")
        if not self.endpoint.rstrip("/").endswith("/chat/completions"):
            self.endpoint = self.endpoint.rstrip("/") + "/chat/completions"

    def ask(self, image: ImageSource, prompt: str) -> Answer:
        """Asks about one picture.

        Raises:
            Refused: the endpoint will not answer about this picture, or it cannot be read.
            Unreachable: no answer after all retries, or an error that no retry mends.
        """
        try:
            body = self._body(image, prompt)
        except (ValueError, OSError) as error:
            raise Refused(str(error)) from error
        reason = ""
        for attempt in range(1, self.retries + 2):
            if self.rate is not None:
                self.rate.wait()
            try:
                return self._answer(self._send(body), attempt)
            except _Again as failure:
                reason = str(failure)
                if attempt <= self.retries:
                    self.sleep(self._pause(attempt, failure.after))
        raise Unreachable(
            f"{self.endpoint} gave no usable answer in {self.retries + 1} tries (the last: {reason})."
        )

    def _pause(self, attempt: int, after: float | None) -> float:
        """Full jitter: anything up to the doubling bound; never shorter than the server asked for."""
        bound = min(self.max_pause, 2.0 ** (attempt - 1))
        return max(after or 0.0, random.uniform(0, bound))

    def _body(self, image: ImageSource, prompt: str) -> bytes:
        picture = {"type": "image_url", "image_url": {"url": data_address(image, self.max_side)}}
        content = [{"type": "text", "text": prompt}, picture]
        message = {"role": "user", "content": content}
        return json.dumps({"model": self.model, "messages": [message], "max_tokens": self.max_tokens}).encode()

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.endpoint, body, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                data = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise _failure(error.code, _detail(error), error.headers) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise _Again(f"{type(error).__name__}: {error}") from error
        if len(data) > MAX_ANSWER_BYTES:
            raise _Again("an answer of more than a megabyte")
        return data

    def _answer(self, data: bytes, attempts: int) -> Answer:
        try:
            content = json.loads(data)
            choice = content["choices"][0]
            raw = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Again(f"an answer that is not of the chat form ({error!r})") from error
        if not isinstance(raw, str) or not raw.strip():
            if isinstance(choice["message"].get("refusal"), str):
                raise Refused(f"the model refused: {choice['message']['refusal']}")
            raise _Again("an empty answer")
        if choice.get("finish_reason") == "length":
            raise _Again("an answer cut off at its length limit")
        if choice.get("finish_reason") == "content_filter":
            raise Refused("the endpoint's content filter withheld the answer")
        usage = content.get("usage")
        return Answer(_one_sentence(raw), raw, usage if isinstance(usage, dict) else {}, attempts)


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Rate:
    """At most so many requests a minute, evenly spread, over all threads."""

    def __init__(self, per_minute: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._gap = 60.0 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()
        self._sleep = sleep

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        with self._lock:
            now = time.monotonic()
            due = max(self._next, now)
            self._next = due + self._gap
        if due > now:
            self._sleep(due - now)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not follow a redirect to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _failure(code: int, detail: str, headers: Message) -> Exception:
    told = f"HTTP {code}" + (f": {detail}" if detail else "")
    if code in _TRANSIENT or code >= 500:
        return _Again(told, _seconds(headers.get("Retry-After")))
    if code in _FATAL or code in range(300, 400):
        return Misconfigured(f"The endpoint answered {told}; check --endpoint, --model and the key.")
    return Refused(told)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        content = json.loads(error.read(10_000))
        return " ".join(str(content["error"]["message"]).split())[:200]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return ""


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds, at most ten minutes; its form as a date is left to the jitter."""
    return min(float(value), 600.0) if value and value.strip().isdigit() else None


def _one_sentence(text: str) -> str:
    return " ".join(text.split()).strip("\"'“”` ")


def data_address(image: ImageSource, max_side: int) -> str:
    """The picture as a JPEG in a data address, at most ``max_side`` pixels long."""
    picture = load_image(image).copy()
    picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
