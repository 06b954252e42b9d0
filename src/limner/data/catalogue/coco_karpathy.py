"""COCO 2014 photos in Karpathy's splits, five human captions each.

From local files: ``dataset_coco.json`` beside ``train2014/`` and ``val2014/``.
"""

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, dataset_of_records, local_folder
from limner.data.folder import ImageCaptionDataset

REPOSITORY = None
NUM_IMAGES = 123_287


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    folder = local_folder("coco-karpathy", options, ["dataset_coco.json", "train2014/", "val2014/"])
    data = ImageCaptionDataset(folder / "dataset_coco.json", skip_bad_images=options.skip_bad_images)
    for remark in data.remarks:
        options.say(remark)
    return dataset_of_records(data.splits())
