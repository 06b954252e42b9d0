"""Scenes that Limner draws itself; every true caption is known.

No download.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, dataset_of_records
from limner.data.scenes import scene_splits

REPOSITORY = None
NUM_IMAGES = 6_000


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    return dataset_of_records(scene_splits())
