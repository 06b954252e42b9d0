"""Pictures decoded and resized in worker processes, and the check that all of a data set can be decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader, Dataset

from limner.data.images import PixelSettings, load_image
from limner.data.records import Record
from limner.data.sizes import Progress

_FEW = 64  # pictures that are decoded before worker processes have even started


@dataclass
class Pictures:
    """A batch of decoded pictures."""

    indices: list[int]
    """Of the records, in the order of ``pixels``."""
    pixels: torch.Tensor
    """(B, H, W, 3) uint8: `PixelSettings.normalize` makes the encoder's input of it."""
    failures: dict[int, str] = field(default_factory=dict)
    """Records that could not be decoded, with the reason."""


def num_workers(num_pictures: int) -> int:
    """Worker processes worth starting: none for a handful of pictures, else one for every two cores, at most 8."""
    return 0 if num_pictures <= _FEW else max(1, min(8, (os.cpu_count() or 1) // 2))


def load_pictures(
    records: Sequence[Record],
    settings: PixelSettings,
    indices: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    draft: bool = False,
) -> Iterator[Pictures]:
    """Decodes the pictures of records, in order.

    Args:
        indices: which records; None: all.
        workers: processes; 0 decodes in this one; None: `num_workers`.
        draft: decode large JPEGs at a fraction of their size, never below what ``settings`` resizes to. Up to three
            times as fast for photos of several megapixels, and not bit-equal.
    """
    wanted = list(range(len(records))) if indices is None else list(indices)
    decoder = _Decoder(records, settings, draft)
    for items in _in_workers(decoder, wanted, batch_size, workers):
        good = [(k, picture) for k, picture, _ in items if picture is not None]
        pixels = torch.stack([picture for _, picture in good]) if good else torch.empty((0, *settings.size, 3))
        failures = {k: reason for k, picture, reason in items if picture is None}
        yield Pictures([k for k, _ in good], pixels.to(torch.uint8), failures)


def check_images(
    records: Sequence[Record],
    skip_bad_images: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[int], list[str]]:
    """Decodes every picture once, so that a damaged one is told now and not an hour into a run.

    Returns:
        The indices of the sound records, and remarks about the others (empty unless ``skip_bad_images``).

    Raises:
        ValueError: some cannot be decoded and ``skip_bad_images`` is off, or none can.
    """
    failures: dict[int, str] = {}
    done = 0
    for items in _in_workers(_Decoder(records, None, draft=True), list(range(len(records))), 64, workers):
        failures |= {k: reason for k, _, reason in items if reason}
        done += len(items)
        if progress is not None:
            progress("checking pictures", done, len(records), "pictures")
    remarks = settle_failures(failures, len(records), skip_bad_images)
    return [k for k in range(len(records)) if k not in failures], remarks


def settle_failures(failures: dict[int, str], num_records: int, skip_bad_images: bool) -> list[str]:
    """What becomes of pictures that cannot be decoded: an error that counts and names them, or such a remark.

    Raises:
        ValueError: ``skip_bad_images`` is off and there are failures, or nothing is left.
    """
    if not failures:
        return []
    reasons = list(failures.values())
    shown = "; ".join(reason.removesuffix(".") for reason in reasons[:3])
    more = f"; and {len(reasons) - 3:,} more" if len(reasons) > 3 else ""
    told = f"{len(failures):,} of {num_records:,} pictures cannot be read: {shown}{more}."
    if len(failures) == num_records:
        raise ValueError(f"{told} None is left.")
    if not skip_bad_images:
        raise ValueError(f"{told} Mend or remove them, or pass --skip-bad-images.")
    return [f"{told} They are left out."]


_Item = tuple[int, torch.Tensor | None, str]


class _Decoder(Dataset[_Item]):
    """``settings`` None: only find out whether a picture can be decoded."""

    def __init__(self, records: Sequence[Record], settings: PixelSettings | None, draft: bool) -> None:
        self.records, self.settings, self.draft = records, settings, draft

    def __getitem__(self, index: int) -> _Item:
        record = self.records[index]
        try:
            if self.settings is None:
                load_image(record.image, draft_size=(8, 8))
                return index, None, ""
            image = load_image(record.image, self.settings.draft_size if self.draft else None)
            return index, torch.from_numpy(self.settings.array(image)), ""
        except (ValueError, OSError) as error:
            return index, None, str(error)


def _in_workers(
    decoder: _Decoder, indices: list[int], batch_size: int, workers: int | None
) -> Iterator[list[_Item]]:
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    count = num_workers(len(indices)) if workers is None else workers
    yield from DataLoader(decoder, batch_sampler=batches, num_workers=count, collate_fn=list)  # type: ignore[arg-type]
