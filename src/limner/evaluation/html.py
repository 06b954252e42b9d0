"""Self-contained HTML: one file, no script, nothing fetched, everything that came from data escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from limner.data.images import ImageSource, load_image

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --good: #2a9d5c; --bad: #d1495b; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .5rem 0; } caption { text-align: left; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.warn { border-left: 4px solid var(--bad); padding: .3rem .8rem; } .quiet { opacity: .75; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.card img { width: 100%; height: 12rem; object-fit: contain; background: #8881; display: block; }
.card div { padding: .5rem .8rem; overflow-wrap: anywhere; } .card ul { margin: .3rem 0; padding-left: 1.1rem; }
.said { font-weight: 600; } .bar { fill: var(--bar); } svg text { fill: currentColor; font-size: 11px; }
mark { background: #ffd54a; color: #000; border-radius: 3px; padding: 0 .15em; }
.p0 { border-bottom: 3px solid #2a9d5c; } .p1 { border-bottom: 3px solid #8bc34a; }
.p2 { border-bottom: 3px solid #f4b400; } .p3 { border-bottom: 3px solid #d1495b; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The page may show what it holds and do nothing else, should an escape ever fail."""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document; ``title`` is text, ``parts`` are HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def section(heading: str, *parts: str) -> str:
    """A heading (text) with what stands below it (HTML)."""
    return f"<h2>{escape(heading)}</h2>{''.join(parts)}"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of text; ``style`` is "warn" or "quiet"."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """Cells of text, or numbers (set right, four digits, as is their heading); None is a dash."""
    filled = [list(row) for row in rows]
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in filled)
    numbers = [not any(isinstance(row[k], str) for row in filled if k < len(row)) for k in range(len(headings))]
    head = "".join(
        f'<th scope="col"{" class=n" if number else ""}>{escape(heading)}</th>'
        for heading, number in zip(headings, numbers, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | float | None) -> str:
    if value is None:
        return '<td class="n">–</td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="n">{value:,}</td>' if isinstance(value, int) else f'<td class="n">{value:.4f}</td>'


def cards(items: Iterable[str]) -> str:
    """A grid of `card`."""
    return f'<div class="cards">{"".join(items)}</div>'


def card(picture: str | None, *parts: str) -> str:
    """A picture (a data address, from `thumbnail`) with HTML below it."""
    shown = f'<img src="{picture}" alt="">' if picture else ""
    return f'<div class="card">{shown}<div>{"".join(parts)}</div></div>'


def items(texts: Iterable[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def spoken(words: Sequence[tuple[str, float | None]]) -> str:
    """A caption whose words are underlined by how sure the model was of each: green, lime, amber, red."""
    shown = []
    for word, chance in words:
        if chance is None:
            shown.append(escape(word))
        else:
            level = 0 if chance > -0.2 else 1 if chance > -0.7 else 2 if chance > -2.3 else 3
            shown.append(f'<span class="p{level}" title="log-probability {chance:.2f}">{escape(word)}</span>')
    return f'<span class="said">{" ".join(shown) or "(nothing)"}</span>'


def marked(caption: str, number: int | None) -> str:
    """A caption with one word marked: the first in which it differs from another."""
    words = [escape(word) for word in caption.split()]
    if number is not None:
        words = [
            *words[:number],
            f"<mark>{words[number] if number < len(words) else '∅'}</mark>",
            *words[number + 1 :],
        ]
    return f'<span class="said">{" ".join(words)}</span>'


def bars(values: Sequence[tuple[str, float]], width: int = 640) -> str:
    """Horizontal bars with their labels and values."""
    if not values:
        return paragraph("(none)", "quiet")
    largest = max(value for _, value in values) or 1
    rows = []
    for row, (label, value) in enumerate(values):
        length = (width - 260) * value / largest
        rows.append(
            f'<text x="150" y="{20 * row + 14}" text-anchor="end">{escape(label[:24])}</text>'
            f'<rect class="bar" x="158" y="{20 * row + 3}" width="{length:.1f}" height="14"/>'
            f'<text x="{length + 164:.1f}" y="{20 * row + 14}">{value:,.4g}</text>'
        )
    told = escape("; ".join(f"{label}: {value:,.4g}" for label, value in values))
    return (
        f'<svg role="img" aria-label="{told}" viewBox="0 0 {width} {20 * len(values) + 4}" '
        f'width="{width}" style="max-width:100%">{"".join(rows)}</svg>'
    )


def thumbnail(image: ImageSource, side: int = 320) -> str | None:
    """The picture as a small JPEG in a data address; None where it cannot be read."""
    try:
        picture = load_image(image, draft_size=(side, side)).copy()
    except (ValueError, OSError):
        return None
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
