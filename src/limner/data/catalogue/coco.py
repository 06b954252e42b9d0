"""COCO 2017 photos, captions by GPT-4o (Mozilla).

``alt_text`` is a string in some files and a list in others, so every file is read by itself.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_shards

REPOSITORY = "Mozilla/coco-gpt4o"


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    return by_image("coco", hub_shards(REPOSITORY, options), options.caption_column or "alt_text", options)
