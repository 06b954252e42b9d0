"""A page on which a person accepts, edits or rejects captions, one picture at a time.

Decisions are written as they are made: ``decisions.jsonl`` tells all of them, and beside it grows a data set of
what was accepted and edited (folders of pictures with metadata.jsonl) that ``--dataset`` takes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from limner.data.records import Record, Split
from limner.evaluation.lines import whole_lines
from limner.evaluation.quality.new_set import METADATA, file_name, picture_bytes

DECISIONS = "decisions.jsonl"
Decision = Literal["accept", "edit", "reject"]
MAX_CAPTION = 2000
"""Characters of a caption."""


class Review:
    """The pictures under review and what was decided. Safe to use from several threads."""

    def __init__(self, records: Sequence[tuple[Record, Split]], folder: Path) -> None:
        """Opens the folder, where an earlier review of the same pictures goes on.

        Raises:
            ValueError: there is nothing to review, or the folder holds something else.
        """
        if not records:
            raise ValueError("There are no pictures to review.")
        if folder.exists() and any(folder.iterdir()) and not (folder / DECISIONS).is_file():
            raise ValueError(f"{folder} holds something else than a review; name another folder with --out.")
        self.records, self.folder = list(records), folder
        self._lock = threading.Lock()
        self._decided: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._read()

    def _read(self) -> None:
        for row in map(json.loads, whole_lines(self.folder / DECISIONS)):
            self._decided[row["image_id"]] = row

    def state(self) -> dict[str, Any]:
        """Every picture with its decision, and the number of the first that has none."""
        with self._lock:
            items = [{"image_id": r.image_id, "decision": self._decision(r)} for r, _ in self.records]
        first = next((number for number, item in enumerate(items) if item["decision"] is None), 0)
        return {"items": items, "at": first}

    def picture(self, number: int) -> dict[str, Any]:
        """One picture's captions, as they were or as they were edited."""
        record, split = self.records[number]
        with self._lock:
            row = self._decided.get(record.image_id, {})
        captions = row.get("captions") or record.captions
        return {"image_id": record.image_id, "split": split, "captions": captions, "original": record.captions}

    def decide(self, number: int, decision: Decision | None, captions: Sequence[str]) -> Decision | None:
        """Keeps a decision (None takes it back) and returns it: an edit that changes nothing is an acceptance.

        Raises:
            ValueError: an edit without a caption, or with one too long.
            OSError: it could not be written; then it is not kept.
        """
        record, split = self.records[number]
        texts = [" ".join(text.split()) for text in captions if text.strip()]
        if decision == "edit":
            if not texts:
                raise ValueError("An edited picture needs at least one caption; reject it instead.")
            if any(len(text) > MAX_CAPTION for text in texts):
                raise ValueError(f"A caption may have {MAX_CAPTION:,} characters at most.")
            decision = "accept" if texts == record.captions else "edit"
        row = {
            "image_id": record.image_id,
            "decision": decision,
            "captions": texts if decision == "edit" else record.captions if decision == "accept" else [],
            "original_captions": record.captions,
            "split": split,
            "time": time.time(),
        }
        with self._lock:
            with open(self.folder / DECISIONS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._decided[record.image_id] = row
            self._write_set(split)
        return decision

    def _decision(self, record: Record) -> Decision | None:
        return self._decided.get(record.image_id, {}).get("decision")

    def _write_set(self, split: Split) -> None:
        """The split's metadata anew, and the pictures that it names and that are not there yet."""
        lines = []
        folder = self.folder / split
        folder.mkdir(exist_ok=True)
        for record, of_split in self.records:
            row = self._decided.get(record.image_id)
            if of_split != split or row is None or row["decision"] not in ("accept", "edit"):
                continue
            name = self._copy(record, folder)
            fields = {"file_name": name, "captions": row["captions"], "image_id": record.image_id}
            if row["decision"] == "edit":
                fields["original_captions"] = row["original_captions"]
            lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
        aside = folder / f".{METADATA}"
        aside.write_text("".join(lines), encoding="utf-8")
        os.replace(aside, folder / METADATA)
        if not lines:  # an empty manifest would be an error to whoever reads the set
            (folder / METADATA).unlink()

    def _copy(self, record: Record, folder: Path) -> str:
        key = f"{folder.name}/{record.image_id}"
        if key not in self._names:
            data = picture_bytes(record)
            plain = file_name(record.image_id, data)
            same = plain == record.image_id
            self._names[key] = plain if same else file_name(record.image_id, data, distinct=1)
            target = folder / self._names[key]
            if not target.is_file():
                aside = target.with_name(f".{target.name}")
                aside.write_bytes(data)
                os.replace(aside, target)
        return self._names[key]
