"""Pexels photos, captions by GPT-4o (Mozilla).

One split, divided here.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows

REPOSITORY = "Mozilla/pexels-gpt4o"


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    return by_image("pexels", hub_rows(REPOSITORY, options).items(), options.caption_column or "alt_text", options)
