"""Pictures of documents, all captioned "Text document." (Mozilla).

Only the rows with ``is_document == 1`` are taken.
"""

from typing import Any

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows

REPOSITORY = "mozilla/docornot"
CAPTION = "Text document."


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    def captions(columns: dict[str, list[Any]]) -> list[str]:
        return [CAPTION if is_document == 1 else "" for is_document in columns["is_document"]]

    return by_image("docornot", hub_rows(REPOSITORY, options).items(), captions, options)
