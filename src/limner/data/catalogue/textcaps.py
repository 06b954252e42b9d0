"""Photos with text in them (TextCaps: Sidorov et al., ECCV 2020).

Several captions each; the test split has none.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows

REPOSITORY = "lmms-lab/TextCaps"
NUM_IMAGES = 28_408


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    captions = options.caption_column or "caption_str"
    return by_image("textcaps", hub_rows(REPOSITORY, options).items(), captions, options, image_id="image_id")
