"""Alt-text validation pictures, captions by GPT (Mozilla).

Those with a non-empty ``gpt_alt_text``. Its validation pictures are never in its training split, as `by_image`
holds for every data set.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, by_image, hub_rows

REPOSITORY = "Mozilla/alt-text-validation"


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    rows = hub_rows(REPOSITORY, options)
    return by_image("validation", rows.items(), options.caption_column or "gpt_alt_text", options)
