"""Flickr30k photos, captions rewritten by GPT-4o (Mozilla).

All rows stand in one split, named "test"; they are divided here.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows

REPOSITORY = "Mozilla/flickr30k-transformed-captions-gpt4o"
NUM_IMAGES = 31_014


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    rows = hub_rows(REPOSITORY, options, split="test")["test"]
    return by_image("flickr", [(None, rows)], options.caption_column or "alt_text", options)
