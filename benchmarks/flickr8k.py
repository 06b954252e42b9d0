"""Flickr8k in a quarter of an hour on two cores: a captioner below 20 MB on a frozen MobileNetV2 trunk.

    python benchmarks/flickr8k.py [DATA] [--seed 42] [--out FOLDER]

DATA holds ``flickr8k/`` and ``models/`` (LIMNER_TEST_DATA). All is done by Limner's verbs, as a person would:

1. 6,000 training and 1,000 validation photos, each with its five captions;
2. a small GPT-2-type decoder: a stock folder with a tokenizer made of the captions, embeddings that know which
   words are said of the same photos (latent semantic analysis), and otherwise random weights;
3. ``limner train``: the frozen trunk's features are cached; the projection, which begins at a ridge regression, and
   the decoder learn the captions' words;
4. ``limner train --objective cider``: they learn what scores;
5. ``limner evaluate`` on the validation photos: BLEU, ROUGE-L, CIDEr-D, and the shuffled control; once as it is,
   the training captions choosing among twenty beams and eighty draws, and once without them.

Prints one JSON object. The recipe was chosen on the validation photos; docs/LOG.md has the tries.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZE = 192
"""The photos' own size: 6 x 6 patches of the trunk."""
DECODER = {"n_embd": 256, "n_layer": 3, "n_head": 4, "n_inner": 512, "n_positions": 128}
DROPOUT = 0.1
VOCABULARY = 2048
WORDS = (
    "--image-tokens regions --projection-start ridge --num-train-epochs 5 --batch-size 32 "
    "--gradient-accumulation-steps 1 --warmup-steps 100 --weight-decay 0.05 --muon-lr 2e-3 --lora-lr 1e-3 "
    "--projection-lr 1e-3 --lr-floor 0 --eval-steps 0 --save-steps 0"
)
SCORE = (
    "--objective cider --metric-for-best-model CIDEr --num-train-epochs 3 --batch-size 32 "
    "--gradient-accumulation-steps 1 --warmup-steps 100 --weight-decay 0.05 --lora-lr 1.5e-4 "
    "--projection-lr 1.5e-4 --eval-steps 0 --save-steps 0 --num-beams 20 --consensus"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("LIMNER_TEST_DATA"))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="keep runs, model and report here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.data is None:
        parser.error("say where the data is, or set LIMNER_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(Path(options.data), out, options), indent=2))


def run(data: Path, out: Path, options: argparse.Namespace) -> dict[str, object]:
    trunk = data / "models" / "mobilenet-v2-0.35-224"
    lay_out(data / "flickr8k", out / "flickr8k")
    smaller_pictures(trunk, out / "pixels")
    new_decoder(out / "flickr8k", out / "decoder", options.seed)
    common = (
        f"--dataset flickr8k={out / 'flickr8k'} --runs-dir {out / 'runs'} --cache-dir {out / 'cache'} --no-lora "
        f"--max-length 24 --patience 0 --seed {options.seed} --threads {options.threads}"
    )
    began = time.perf_counter()
    parts = f"--encoder-model {trunk} --decoder-model {out / 'decoder'} --feature-extractor-model {out / 'pixels'}"
    limner(f"train {common} --name words {parts} {WORDS}")
    seconds = {"words": time.perf_counter() - began}
    model = out / "runs" / "words" / "model"
    began = time.perf_counter()
    limner(f"train {common} --name score --base-model {model} {SCORE}")
    seconds["score"] = time.perf_counter() - began
    model = out / "runs" / "score" / "model"
    reports = {
        name: limner(
            f"evaluate {model} --dataset flickr8k={out / 'flickr8k'} --json --meteor off --batch-size 50 {how} "
            f"--out {out / name} --cache-dir {out / 'cache'} --threads {options.threads}"
        )
        for name, how in (("consensus", ""), ("likeliest", "--no-consensus"))
    }
    return {
        "seconds": {name: round(value) for name, value in seconds.items()},
        "training_minutes": round(sum(seconds.values()) / 60, 1),
        "model_mb": round(sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) / 1e6, 1),
    } | {name: json.loads(report) for name, report in reports.items()}


def limner(arguments: str) -> str:
    print(f"limner {arguments}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "limner", *arguments.split()], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


# ---- the data as the catalogue knows it: photos, Flickr8k.token.txt, the lists of the splits -------------------


def lay_out(source: Path, folder: Path) -> None:
    photos = folder / "images"
    photos.mkdir(parents=True, exist_ok=True)
    for shard in sorted(source.glob("images192_*.tar")):
        with tarfile.open(shard) as archive:
            archive.extractall(photos, filter="data")
    rows = [json.loads(line) for line in (source / "captions_train_dev.jsonl").read_text().splitlines()]
    with open(folder / "Flickr8k.token.txt", "w") as tokens:
        for row in rows:
            captions = plain(row["captions"]) if row["split"] == "train" else row["captions"]
            for number, caption in enumerate(captions):
                tokens.write(f"{row['image']}#{number}\t{caption}\n")
    for name in ("trainImages", "devImages"):
        shutil.copy(source / f"Flickr_8k.{name}.txt", folder)


def plain(captions: list[str]) -> list[str]:
    """Without capitals and punctuation, as CIDEr-D reads them; two of the 40,000 are the single word "A"."""
    from limner.evaluation import ptb_tokenize

    cleaned = [ptb_tokenize(caption) for caption in captions]
    return [caption for caption in cleaned if len(caption.split()) > 2] or cleaned


def smaller_pictures(trunk: Path, folder: Path) -> None:
    """The trunk's own preprocessing, at `SIZE`."""
    folder.mkdir(exist_ok=True)
    settings = json.loads((trunk / "preprocessor_config.json").read_text())
    settings["size"] = {"height": SIZE, "width": SIZE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def new_decoder(data: Path, folder: Path, seed: int) -> None:
    """A stock GPT-2 checkpoint with a tokenizer and embeddings that are made of the training captions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from limner.training.ridge_start import telling_words
    from limner.training.scratch import scratch_tokenizer

    captions: dict[str, list[str]] = {name: [] for name in (data / "Flickr_8k.trainImages.txt").read_text().split()}
    for line in (data / "Flickr8k.token.txt").read_text().splitlines():
        name, caption = line.split("\t")
        if (photo := name.split("#")[0]) in captions:
            captions[photo].append(caption)
    words = scratch_tokenizer([caption for of_photo in captions.values() for caption in of_photo], VOCABULARY)
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **DECODER, **drop, **special))
    embedding = model.transformer.wte.weight.data  # (V, D)
    V, D = embedding.shape
    ids = [[words.encode(caption, add_special_tokens=False) for caption in texts] for texts in captions.values()]
    told = telling_words(ids, torch.eye(V))  # (photos, V): tf-idf
    values, vectors = torch.linalg.eigh(told.mT @ told)  # told's right singular vectors and squared singular values
    latent = vectors[:, -D:] * values[-D:].clamp_min(0) ** 0.25 @ torch.linalg.qr(torch.randn(D, D))[0]  # (V, D)
    embedding += latent * (embedding.norm(dim=1).mean() / latent.norm(dim=1).mean())
    model.save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    main()
