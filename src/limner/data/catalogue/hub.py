"""Any hub data set with a picture column and a caption column."""

from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature

from limner.data.caption_files import CAPTION_COLUMNS, find_column
from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows


def get_dataset(repository: str, options: Options = DEFAULTS) -> DatasetDict:
    """Raises ValueError where no picture or caption column can be told."""
    parts = hub_rows(repository, options)
    rows = next(iter(parts.values()))
    image = options.image_column or _image_column(repository, rows)
    captions = options.caption_column or find_column(rows.column_names, CAPTION_COLUMNS)
    if captions is None:
        raise ValueError(
            f"{repository} has no column named {', '.join(CAPTION_COLUMNS)}; its columns are: "
            f"{', '.join(rows.column_names)}. Name the captions with --caption-column."
        )
    return by_image(repository, parts.items(), captions, options, image)


def _image_column(repository: str, rows: Dataset) -> str:
    found = [name for name, kind in rows.features.items() if isinstance(kind, ImageFeature)]
    if len(found) != 1:
        raise ValueError(
            f"{repository} has {len(found) or 'no'} picture columns; its columns are: "
            f"{', '.join(rows.column_names)}. Name one with --image-column."
        )
    return found[0]
