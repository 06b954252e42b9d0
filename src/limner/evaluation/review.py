"""A page on which a person accepts, edits or rejects captions, one picture at a time.

Decisions are written as they are made: ``decisions.jsonl`` tells all of them, and beside it grows a data set of
what was accepted and edited (folders of pictures with metadata.jsonl) that ``--dataset`` takes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

from limner.data.records import SPLITS, Record, Split
from limner.evaluation.lines import whole_lines
from limner.evaluation.quality.new_set import METADATA, file_name, picture_bytes
from limner.runs.folder import take_lock
from limner.whole_files import write_whole

DECISIONS = "decisions.jsonl"
SUBJECT = "review-of"
Decision = Literal["accept", "edit", "reject"]
MAX_CAPTION = 2000
"""Characters of a caption."""


class Review:
    """The pictures under review and what was decided. Safe to use from several threads.

    Attributes:
        remarks: decisions of before that do not count, with the reason.
    """

    def __init__(
        self, records: Sequence[tuple[Record, Split]], folder: Path, subject: Mapping[str, Any] | None = None
    ) -> None:
        """Opens the folder, where an earlier review of the same pictures goes on; `close` lets go of it.

        What was decided of pictures that are not under review now stays in the reviewed set.

        Args:
            subject: what is under review, in plain values that JSON can hold.

        Raises:
            ValueError: there is nothing to review, or the folder holds something else, the review of another
                subject, or one that is open in another window.
        """
        if not records:
            raise ValueError("There are no pictures to review.")
        if folder.exists() and any(folder.iterdir()) and not (folder / DECISIONS).is_file():
            raise ValueError(f"{folder} holds something else than a review; name another folder with --out.")
        self.records, self.folder, self.remarks = list(records), folder, list[str]()
        self._lock = threading.Lock()
        self._decided: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._held = _only_one(folder)
        try:
            self._check_subject(dict(subject or {}))
            self._names, self._others = self._written()
            self._read()
            for split in SPLITS:
                self._write_set(split)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Another review may open the folder."""
        if self._held is not None:
            self._held.close()

    def _check_subject(self, subject: dict[str, Any]) -> None:
        file = self.folder / SUBJECT
        before = json.loads((file.is_file() and file.read_text(encoding="utf-8")) or "null")
        if before is None:
            write_whole(file, json.dumps(subject, ensure_ascii=False))
        elif before != subject:
            different = [name for name in subject if before.get(name) != subject[name]]
            told = "; ".join(f"{name}: {before.get(name)} there, {subject[name]} now" for name in different)
            raise ValueError(
                f"{self.folder} holds a review of something else ({told}); name another folder with --out. (If the "
                f"data has only moved, write its new place into {file}.)"
            )

    def _written(self) -> tuple[dict[str, str], dict[Split, list[str]]]:
        """Of the reviewed set as it stands: the file of each picture, and the rows of those not under review."""
        reviewed = {record.image_id for record, _ in self.records}
        names: dict[str, str] = {}
        others: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            file = self.folder / split / METADATA
            for line in file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else ():
                row = json.loads(line)
                names[f"{split}/{row['image_id']}"] = row["file_name"]
                if row["image_id"] not in reviewed:
                    others[split].append(line + "\n")
        return names, others

    def _read(self) -> None:
        rows = {row["image_id"]: row for row in map(json.loads, whole_lines(self.folder / DECISIONS))}
        changed = []
        for record, split in self.records:
            row = rows.get(record.image_id)
            if row is None:
                continue
            if row["original_captions"] != record.captions:
                changed.append(record.image_id)
                continue
            try:
                if row["decision"] in ("accept", "edit"):
                    self._copy(record, split)
            except (ValueError, OSError) as error:
                self.remarks.append(f"{record.image_id} was decided, but its picture cannot be read: {error}")
                continue
            self._decided[record.image_id] = row
        if changed:
            self.remarks.append(
                f"Of {len(changed):,} pictures other captions were decided than there are now; they are asked of "
                f"again: {', '.join(changed[:3])}{' ...' if changed[3:] else ''}."
            )

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
            captions = self._shown(record)
        return {"image_id": record.image_id, "split": split, "captions": captions, "original": record.captions}

    def decide(self, number: int, decision: Decision | None, captions: Sequence[str]) -> Decision | None:
        """Keeps a decision (None takes it back) and returns it.

        An edit that changes nothing is an acceptance; to accept what was edited keeps the edit.

        Raises:
            ValueError: an edit without a caption, or with one too long; a picture that cannot be read.
            OSError: it could not be written; then it is not kept.
        """
        record, split = self.records[number]
        texts = [" ".join(text.split()) for text in captions if text.strip()]
        if decision == "edit":
            if not texts:
                raise ValueError("An edited picture needs at least one caption; reject it instead.")
            if any(len(text) > MAX_CAPTION for text in texts):
                raise ValueError(f"A caption may have {MAX_CAPTION:,} characters at most.")
        with self._lock:
            if decision == "accept":
                texts = self._shown(record)
            if decision in ("accept", "edit"):
                self._copy(record, split)
                decision = "accept" if texts == record.captions else "edit"
            row = {
                "image_id": record.image_id,
                "decision": decision,
                "captions": texts if decision in ("accept", "edit") else [],
                "original_captions": record.captions,
                "split": split,
                "time": time.time(),
            }
            with open(self.folder / DECISIONS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._decided[record.image_id] = row
            self._write_set(split)
        return decision

    def _decision(self, record: Record) -> Decision | None:
        return self._decided.get(record.image_id, {}).get("decision")

    def _shown(self, record: Record) -> list[str]:
        return self._decided.get(record.image_id, {}).get("captions") or record.captions

    def _write_set(self, split: Split) -> None:
        """The split's metadata anew; the pictures that it names are there."""
        lines = list(self._others[split])
        for record, of_split in self.records:
            row = self._decided.get(record.image_id)
            if of_split != split or row is None or row["decision"] not in ("accept", "edit"):
                continue
            name = self._names[f"{split}/{record.image_id}"]
            fields = {"file_name": name, "captions": row["captions"], "image_id": record.image_id}
            if row["decision"] == "edit":
                fields["original_captions"] = row["original_captions"]
            lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
        metadata = self.folder / split / METADATA
        if not lines:  # an empty manifest would be an error to whoever reads the set
            metadata.unlink(missing_ok=True)
            return
        write_whole(metadata, "".join(lines))

    def _copy(self, record: Record, split: Split) -> str:
        """The name of the picture in its split's folder, where it is put unless it is there.

        Raises:
            ValueError, OSError: it cannot be read or written.
        """
        key, folder = f"{split}/{record.image_id}", self.folder / split
        if key in self._names and (folder / self._names[key]).is_file():
            return self._names[key]
        data = picture_bytes(record)
        plain = file_name(record.image_id, data)
        name = plain if plain == record.image_id else file_name(record.image_id, data, distinct=1)
        folder.mkdir(exist_ok=True)
        write_whole(folder / name, data)
        self._names[key] = name
        return name


def _only_one(folder: Path) -> IO[bytes] | None:
    """The folder's lock, held until it is closed or the process ends; None: no lock can be had in this place, and
    two reviews are not kept apart."""
    try:
        return take_lock(folder / ".lock")
    except BlockingIOError:
        raise ValueError(
            f"{folder} is under review in another window; go on there, or name another folder with --out."
        ) from None
    except OSError:
        return None
