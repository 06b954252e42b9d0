"""Flickr8k photos, five human captions each (Hodosh et al., JAIR 2013).

Taken from local files as they are spread: ``Flickr8k.token.txt`` with the lists ``Flickr_8k.trainImages.txt``,
``devImages`` and ``testImages`` beside the folder of photos; ``captions.txt``; Karpathy's form,
``dataset_flickr8k.json``; or a .jsonl of captions.
"""

from pathlib import Path

from datasets import DatasetDict

from limner.data.catalogue.rows import DEFAULTS, Options, dataset_of_records, local_folder
from limner.data.folder import ImageCaptionDataset
from limner.data.records import Split

REPOSITORY = None
NUM_IMAGES = 8_000
CAPTIONS = ("Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt")
PHOTOS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")


def get_dataset(options: Options = DEFAULTS) -> DatasetDict:
    folder = local_folder("flickr8k", options, ["the photos", "Flickr8k.token.txt"])
    captions = next((folder / name for name in CAPTIONS if (folder / name).is_file()), folder)
    photos = next((folder / name for name in PHOTOS if (folder / name).is_dir()), None)
    data = ImageCaptionDataset(captions, skip_bad_images=options.skip_bad_images, images=photos)
    for remark in data.remarks:
        options.say(remark)
    listed = _listed(folder)
    for record in data:
        record.split = listed.get(Path(record.image_id).name, record.split)
    return dataset_of_records(data.splits())


def _listed(folder: Path) -> dict[str, Split]:
    """The split of each photo in the published lists."""
    lists: dict[Split, str] = {"train": "trainImages", "validation": "devImages", "test": "testImages"}
    files = {split: folder / f"Flickr_8k.{name}.txt" for split, name in lists.items()}
    return {name: split for split, file in files.items() if file.is_file() for name in file.read_text().split()}
