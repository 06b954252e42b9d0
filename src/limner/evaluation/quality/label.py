"""Captions from a teacher for a whole data set: estimated first, resumable, every answer kept with its prompt."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.data.records import Record, Split
from limner.evaluation.lines import whole_lines
from limner.evaluation.quality.new_set import Entry
from limner.evaluation.quality.teacher import REWRITE, Misconfigured, Refused, Teacher, Unreachable

ANSWERS = "answers.jsonl"
_GIVE_UP_AFTER = 5  # pictures in a row without an answer: the endpoint is down


@dataclass(frozen=True)
class Estimate:
    """What the labelling will take, told before the first request."""

    pictures: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    """In the currency of the prices given; None without prices."""
    minutes: float | None
    """By the rate limit alone."""


def estimate(
    num_pictures: int,
    prompt: str,
    max_side: int,
    price_in: float | None,
    price_out: float | None,
    per_minute: float | None,
) -> Estimate:
    """Tokens, cost and time of labelling; prices are for a million tokens.

    A picture counts as 85 tokens and 170 for each tile of 512 x 512, the rule of OpenAI's documentation; other
    endpoints count otherwise. A word is 1.3 tokens; an answer is 25.
    """
    tiles = (-(-max_side // 512)) ** 2
    each = round(len(prompt.split()) * 1.3) + 85 + 170 * tiles
    tokens_in, tokens_out = num_pictures * each, num_pictures * 25
    cost = None
    if price_in is not None and price_out is not None:
        cost = (tokens_in * price_in + tokens_out * price_out) / 1e6
    return Estimate(num_pictures, tokens_in, tokens_out, cost, num_pictures / per_minute if per_minute else None)


class AnswerLog:
    """Every answer, with its prompt, one JSON object a line; written as they come, read to go on.

    Args:
        model, prompt: who is asked now, and what: earlier answers to something else do not count.
        rewriting: the prompt goes on with the first caption there is.
    """

    def __init__(self, folder: Path, model: str, prompt: str, rewriting: bool = False) -> None:
        self.path, self.model, self.prompt, self.rewriting = folder / ANSWERS, model, prompt, rewriting
        self._captions: dict[tuple[str, str, str], str] = {}  # by image, model and all that was asked
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for line in whole_lines(self.path):
            self._keep(json.loads(line))

    def asked(self, record: Record) -> str:
        """All that the teacher is asked of a picture."""
        if self.rewriting and record.captions:
            return self.prompt + REWRITE.replace("{caption}", record.captions[0])
        return self.prompt

    def caption(self, record: Record) -> str | None:
        """What the teacher has answered; None: nothing yet."""
        return self._captions.get((record.image_id, self.model, self.asked(record)))

    def add(self, record: Record, answer: dict[str, Any]) -> None:
        row = {"image_id": record.image_id, "model": self.model, "prompt": self.asked(record), "time": time.time()}
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | answer, ensure_ascii=False) + "\n")
            self._keep(row | answer)

    def _keep(self, row: dict[str, Any]) -> None:
        if row.get("caption"):
            self._captions[row["image_id"], row["model"], row["prompt"]] = row["caption"]


def label(
    records: Sequence[Record],
    teacher: Teacher,
    log: AnswerLog,
    *,
    concurrency: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Asks about every picture that has no answer yet; returns why the others have none.

    Raises:
        Unreachable: the endpoint cannot be used at all, or has stopped answering; what is there is kept.
    """
    left = [record for record in records if log.caption(record) is None]
    refused: list[str] = []
    silent = 0
    done = len(records) - len(left)
    progress(done, len(records))
    with ThreadPoolExecutor(concurrency) as pool:
        queue = iter(left)
        waiting = {
            pool.submit(_ask, record, teacher, log): record
            for _, record in zip(range(concurrency), queue, strict=False)  # the range first: it ends the zip
        }
        while waiting:
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                record = waiting.pop(future)
                try:
                    future.result()
                    silent = 0
                except Refused as error:
                    refused.append(f"{record.image_id}: {error}")
                except Unreachable as error:
                    silent += 1
                    refused.append(f"{record.image_id}: {error}")
                    if isinstance(error, Misconfigured) or silent >= _GIVE_UP_AFTER:
                        for other in waiting:
                            other.cancel()
                        raise
                done += 1
                progress(done, len(records))
                following = next(queue, None)
                if following is not None:
                    waiting[pool.submit(_ask, following, teacher, log)] = following
    return refused


def _ask(record: Record, teacher: Teacher, log: AnswerLog) -> None:
    try:
        answer = teacher.ask(record.image, log.asked(record))
    except (Refused, Unreachable) as error:
        log.add(record, {"error": str(error)})
        raise
    log.add(record, {name: getattr(answer, name) for name in ("caption", "raw", "usage", "attempts")})


def labelled(records: Sequence[tuple[Record, Split]], log: AnswerLog) -> Iterator[Entry]:
    """The entries of the new set: the teacher's captions, with the originals and the teacher's name beside them."""
    for record, split in records:
        caption = log.caption(record)
        if caption is not None:
            extra: dict[str, Any] = {"labelled_by": log.model}
            if record.captions:
                extra["original_captions"] = record.captions
            yield Entry(Record(record.image, [caption], record.image_id, split), split, extra)
