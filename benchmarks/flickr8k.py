"""Flickr8k in a quarter of an hour on two cores: a captioner below 20 MB on a frozen MobileNetV2 trunk.

    python benchmarks/flickr8k.py [DATA] [--seed 42] [--out FOLDER]
    python benchmarks/flickr8k.py [DATA] --cider    # a second stage; in so short a time it gained nothing

DATA holds ``flickr8k/`` and ``models/`` (LIMNER_TEST_DATA). All is done by Limner's verbs, as a person would:

1. 6,000 training photos, each with the three most typical of its captions; 1,000 validation photos with all;
2. a small GPT-2-type decoder with random weights and a tokenizer made of the captions: a stock folder;
3. ``limner train``: the frozen trunk's features are cached, projection and decoder learn the captions' words;
4. with --cider, ``limner train --objective cider``: they learn what scores;
5. ``limner evaluate`` on the validation photos: BLEU, ROUGE-L, METEOR, CIDEr-D, and the shuffled control.

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
TYPICAL = 3
"""Captions kept of each training photo: those nearest to its others by CIDEr-D."""
DECODER = {"n_embd": 320, "n_layer": 3, "n_head": 5, "n_inner": 640, "n_positions": 128}
DROPOUT = 0.1
VOCABULARY = 2048
WORDS = (
    "--num-train-epochs 5 --batch-size 32 --gradient-accumulation-steps 1 --warmup-steps 100 --weight-decay 0.05 "
    "--lora-lr 1e-3 --projection-lr 1e-3 --lr-floor 0 --eval-steps 0 --save-steps 0"
)
SCORE = (
    "--objective cider --metric-for-best-model CIDEr --num-train-epochs 1.5 --batch-size 32 "
    "--gradient-accumulation-steps 1 --warmup-steps 20 --weight-decay 0.05 --lora-lr 1e-4 --projection-lr 1e-4 "
    "--eval-steps 0 --save-steps 0"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("LIMNER_TEST_DATA"))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="keep runs, model and report here")
    parser.add_argument("--cider", action="store_true", help="train on the score afterwards")
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
    new_decoder(out / "flickr8k" / "Flickr8k.token.txt", out / "decoder", options.seed)
    common = (
        f"--dataset flickr8k={out / 'flickr8k'} --runs-dir {out / 'runs'} --cache-dir {out / 'cache'} --no-lora "
        f"--max-length 24 --patience 0 --seed {options.seed} --threads {options.threads}"
    )
    began = time.perf_counter()
    parts = f"--encoder-model {trunk} --decoder-model {out / 'decoder'} --feature-extractor-model {out / 'pixels'}"
    limner(f"train {common} --name words {parts} {WORDS}")
    seconds = {"words": time.perf_counter() - began}
    model = out / "runs" / "words" / "model"
    if options.cider:
        began = time.perf_counter()
        limner(f"train {common} --name score --base-model {model} {SCORE}")
        seconds["score"] = time.perf_counter() - began
        model = out / "runs" / "score" / "model"
    report = limner(
        f"evaluate {model} --dataset flickr8k={out / 'flickr8k'} --json --meteor off --batch-size 50 "
        f"--out {out / 'evaluation'} --cache-dir {out / 'cache'} --threads {options.threads}"
    )
    weights = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
    return {
        "seconds": {name: round(value) for name, value in seconds.items()},
        "training_minutes": round(sum(seconds.values()) / 60, 1),
        "model_mb": round(weights / 1e6, 1),
        "evaluation": json.loads(report),
    }


def limner(arguments: str) -> str:
    print(f"limner {arguments}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "limner", *arguments.split()], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


# ---- the data as the catalogue knows it: photos, Flickr8k.token.txt, the lists of the splits -------------------


def lay_out(source: Path, folder: Path) -> None:
    from limner.evaluation import ptb_tokenize

    photos = folder / "images"
    photos.mkdir(parents=True, exist_ok=True)
    for shard in sorted(source.glob("images192_*.tar")):
        with tarfile.open(shard) as archive:
            archive.extractall(photos, filter="data")
    rows = [json.loads(line) for line in (source / "captions_train_dev.jsonl").read_text().splitlines()]
    training = {row["image"]: row["captions"] for row in rows if row["split"] == "train"}
    chosen = typical({name: [ptb_tokenize(text) for text in captions] for name, captions in training.items()})
    with open(folder / "Flickr8k.token.txt", "w") as tokens:
        for row in rows:
            for number, caption in enumerate(chosen.get(row["image"], row["captions"])):
                tokens.write(f"{row['image']}#{number}\t{caption}\n")
    for name in ("trainImages", "devImages"):
        shutil.copy(source / f"Flickr_8k.{name}.txt", folder)


def typical(captions: dict[str, list[str]]) -> dict[str, list[str]]:
    """Of each photo the captions that score best against its others."""
    from limner.evaluation.cider import CiderD
    from limner.evaluation.ngrams import count_ngrams

    counted = [[count_ngrams(text.split()) for text in of_photo] for of_photo in captions.values()]
    scorer = CiderD(counted)
    chosen = {}
    for (name, texts), counts, vectors in zip(captions.items(), counted, scorer.vectors, strict=True):
        scores = [scorer.score(own, vectors[:j] + vectors[j + 1 :]) for j, own in enumerate(counts)]
        best = sorted(range(len(texts)), key=lambda j: -scores[j])[:TYPICAL]
        chosen[name] = [texts[j] for j in best]
    return chosen


def smaller_pictures(trunk: Path, folder: Path) -> None:
    """The trunk's own preprocessing, at `SIZE`."""
    folder.mkdir(exist_ok=True)
    settings = json.loads((trunk / "preprocessor_config.json").read_text())
    settings["size"] = {"height": SIZE, "width": SIZE}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def new_decoder(tokens: Path, folder: Path, seed: int) -> None:
    """A stock GPT-2 checkpoint with random weights, and a tokenizer made of the captions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from limner.training.scratch import scratch_tokenizer

    captions = [line.split("\t")[1] for line in tokens.read_text().splitlines()]
    words = scratch_tokenizer(captions, VOCABULARY)
    special = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT)
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **DECODER, **drop, **special)).save_pretrained(folder)
    words.save_pretrained(folder)


if __name__ == "__main__":
    main()
