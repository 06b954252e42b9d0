"""Pictures, captions and text: from files to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limner.lazy import lazy_names

if TYPE_CHECKING:
    from limner.data.catalogue import load_dataset_by_name
    from limner.data.folder import ImageCaptionDataset
    from limner.data.images import load_image
    from limner.data.records import Record, Splits

__all__ = ["ImageCaptionDataset", "Record", "Splits", "load_dataset_by_name", "load_image"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ImageCaptionDataset": ".folder",
        "Record": ".records",
        "Splits": ".records",
        "load_dataset_by_name": ".catalogue",
        "load_image": ".images",
    },
)
