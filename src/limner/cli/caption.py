"""``limner caption``: pictures into words."""

from __future__ import annotations

import glob
import io
import sys
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from limner.cli.parse import parse
from limner.cli.telling import json_line
from limner.config.caption import CaptionConfig
from limner.runs.models import find_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from limner.decoding.captioner import Caption

MAX_FETCH = 64 * 2**20
"""Bytes after which a download, or standard input, is given up."""
FETCH_SECONDS = 30


def run(argv: list[str]) -> int:
    config = parse(CaptionConfig, argv, "limner caption")
    sources = list(_sources(config))  # every name is checked before the model is loaded
    from limner.decoding.captioner import load_captioner
    from limner.device import keep_freed_memory

    keep_freed_memory()
    captioner = load_captioner(
        find_model(config.model, config.runs_dir, "captioner"),
        device=config.device,
        precision=config.precision,
        quantize=config.quantize,
        threads=config.threads,
        revision=config.revision,
    )
    bad: list[str] = []
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be bytes that are no text
    for batch in _batches(_pictures(sources, bad), config.batch_size):
        captions = captioner.describe(
            [image for _, image in batch],
            batch_size=config.batch_size,
            abstain_below=config.abstain_below,
            consensus=config.consensus,
            num_beams=config.num_beams,
            max_new_tokens=config.max_length,
        )
        for (name, _), caption in zip(batch, captions, strict=True):
            print(_line(name, caption, config.json_), flush=True)
    if bad and config.skip_bad_images:
        print(f"limner caption: skipped {len(bad)} of {len(sources)} pictures.", file=sys.stderr)
    return 1 if bad and not config.skip_bad_images else 0


def _line(name: str, caption: Caption, as_json: bool) -> str:
    if as_json:
        fields = {
            "path": name,
            "caption": caption.text,
            "tokens": caption.tokens,
            "token_logprobs": [round(logprob, 6) for logprob in caption.token_logprobs],
            "mean_logprob": round(caption.mean_logprob, 6),
            "score": round(caption.score, 6),
            "ending": caption.ending,
            "seconds": round(caption.seconds, 4),
        }
        return json_line(fields)
    # A tab or line break in a file's name or a caption would break the table.
    shown = (
        name.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
        if "\t" in name or "\n" in name
        else name
    )
    return f"{shown}\t{' '.join(caption.text.split())}"


# ---- which pictures ---------------------------------------------------------------------------------------------


def _sources(config: CaptionConfig) -> Iterator[str]:
    """The pictures that were asked for, by name; folders and patterns become their files, in sorted order.

    Raises:
        FileNotFoundError: a file or folder that is not there; a pattern or folder without pictures.
        ValueError: an address without ``--allow-urls``, or one of another kind than http and https.
    """
    from limner.data.images import EXTENSIONS, UNREAD

    if not config.pictures:
        raise ValueError("Name at least one picture: a file, a folder, a pattern, or - for standard input.")
    for given in config.pictures:
        if "://" in given:
            yield _checked_address(given, config.allow_urls)
        elif given == "-" or Path(given).is_file():
            yield given
        elif Path(given).is_dir():
            kinds = EXTENSIONS | UNREAD
            there = sorted(p for p in Path(given).rglob("*") if p.suffix.lower() in kinds and not p.is_dir())
            unread = [path.name for path in there if path.suffix.lower() in UNREAD]
            found = [path for path in there if path.suffix.lower() in EXTENSIONS]
            told = ""
            if unread:
                names = ", ".join(unread[:3]) + (", ..." if len(unread) > 3 else "")
                told = f" {given}: left out {len(unread)} of {len(there)} pictures ({names}); convert to JPEG."
            if not found:
                raise FileNotFoundError(f"The folder {given} holds no pictures.{told}")
            if told:
                print(f"limner caption:{told}", file=sys.stderr)
            yield from map(str, found)
        elif glob.has_magic(given):
            found_names = sorted(name for name in glob.glob(given, recursive=True) if Path(name).is_file())
            if not found_names:
                raise FileNotFoundError(f"No file fits the pattern {given}.")
            yield from found_names
        else:
            raise FileNotFoundError(f"There is no file or folder {given}.")


def _checked_address(address: str, allowed: bool) -> str:
    scheme = urlsplit(address).scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"{address} is an address of kind {scheme}; only http and https are fetched.")
    if not allowed:
        raise ValueError(f"{address} is an address; add --allow-urls to fetch pictures from the net.")
    return address


def _pictures(sources: Iterable[str], bad: list[str]) -> Iterator[tuple[str, Image]]:
    """Name and picture of those that can be read; what cannot is said on standard error and noted in ``bad``."""
    from limner.data.images import load_image

    for name in sources:
        try:
            yield name, load_image(_content(name))
        except (ValueError, OSError) as error:
            bad.append(name)
            message = str(error)
            print(f"limner caption: {message if name in message else f'{name}: {message}'}", file=sys.stderr)


def _content(name: str) -> str | bytes:
    if name != "-" and "://" not in name:
        return name
    content = sys.stdin.buffer.read(MAX_FETCH + 1) if name == "-" else _fetch(name)
    if len(content) > MAX_FETCH:
        raise ValueError(f"{name} is larger than {MAX_FETCH // 2**20} MB; shrink the picture first.")
    return content


class _OnlyHttp(HTTPRedirectHandler):
    """An http address must not lead to a file or an ftp server."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, code, msg, headers, _checked_address(newurl, True))


def _fetch(address: str) -> bytes:
    request = Request(address, headers={"User-Agent": "limner", "Accept": "image/*"})
    try:
        with build_opener(_OnlyHttp).open(request, timeout=FETCH_SECONDS) as answer:
            return answer.read(MAX_FETCH + 1)
    except (OSError, HTTPException) as error:  # the latter: an address or answer that breaks the protocol
        raise OSError(f"{address} cannot be fetched: {getattr(error, 'reason', error)}.") from error


def _batches(items: Iterable[tuple[str, Image]], size: int) -> Iterator[list[tuple[str, Image]]]:
    batch: list[tuple[str, Image]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
