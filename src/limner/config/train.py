"""Settings of ``limner train``: a captioner, from nothing or from stock checkpoints."""

from __future__ import annotations

from collections.abc import Container
from os.path import exists  # Path.exists raises where a name is too long for a file
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from limner.config.training import Loop, TrainSettings

SIGLIP, SMOLLM = "google/siglip-base-patch16-224", "HuggingFaceTB/SmolLM-135M"

PRESETS: dict[str, dict[str, Any]] = {
    "scratch": {},
    "balanced": {"encoder_model": SIGLIP, "decoder_model": SMOLLM},
    "better": {"encoder_model": "google/siglip-base-patch16-384", "decoder_model": "HuggingFaceTB/SmolLM2-360M"},
    "large": {
        "encoder_model": "google/siglip-so400m-patch14-384",
        "decoder_model": "HuggingFaceTB/SmolLM2-1.7B",
        "batch_size": 2,
        "gradient_accumulation_steps": 32,
    },
    "premium": {
        "encoder_model": "google/siglip2-so400m-patch16-384",
        "decoder_model": "Qwen/Qwen2.5-3B",
        "batch_size": 1,
        "gradient_accumulation_steps": 64,
    },
    "legacy": {"encoder_model": "google/vit-base-patch16-224-in21k", "decoder_model": "distilbert/distilgpt2"},
}
"""The recommended pairs. ``scratch`` needs no download: a small pair trained from random weights."""

_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "save_adapter")


class TrainConfig(TrainSettings):
    """Train or fine-tune a captioner: vision encoder -> projection -> decoder-only language model."""

    LENGTH_FIELDS = frozenset({"num_train_epochs", "max_steps"})
    WARM_START = "--base-model"

    # -- data
    dataset: tuple[str, ...] = ()
    """One or more data sets: names (`limner data list`), hub ids, folders, manifests, .tar shards; combined."""
    dataset_weights: tuple[float, ...] = ()
    """How often each data set is drawn, relative to the others; unset: as many pictures as it has."""
    image_column: str | None = None
    """The column of a hub data set that holds the picture; unset: found by its type."""
    caption_column: str | None = None
    """The column that holds the caption or captions; unset: found by its name."""
    sample: int | None = Field(default=None, ge=2)
    """Use only this many pictures (seeded), for a quick look."""
    skip_bad_images: bool = False
    """Leave out pictures that cannot be read, counted and named, instead of ending with an error."""
    max_length: int = Field(default=30, ge=2)
    """The most tokens of a caption, its end included; longer ones are cut, and counted."""
    mirror: bool = False
    """Show training pictures mirrored every other time, where captions tell no sides; features can be cached."""
    augment: bool = False
    """Vary crops and colours (and mirror pictures whose captions name no side); turns feature caching off."""
    cache_dir: Path = Path("cache")
    """Where downloaded data and vision features are kept."""
    prune_cache: bool = False
    """Remove this run's feature cache when it has ended."""
    cache_features: Literal["auto", "on", "off"] = "auto"
    """Encode every picture once, ahead; auto: when the encoder is frozen and the disk has room."""
    cache_int8: bool = False
    """Keep cached features in 8 bits: half the disk, at the error that is printed."""

    # -- model
    preset: Literal["scratch", "balanced", "better", "large", "premium", "legacy"] | None = None
    """A recommended pair. Unset: `balanced` for named and hub data sets, `scratch` for a person's own folder."""
    encoder_model: str | None = None
    """Vision encoder: a hub id or a folder in stock format (google/siglip-base-patch16-224 in `balanced`)."""
    decoder_model: str | None = None
    """Language model: a hub id, a stock folder, or a pretraining run (HuggingFaceTB/SmolLM-135M in `balanced`)."""
    feature_extractor_model: str | None = None
    """Another image processor than the encoder's own: a hub id or folder."""
    base_model: str | None = None
    """Go on from a captioner trained earlier: a hub id or a model folder."""
    base_model_revision: str | None = None
    """The revision of the base model on the hub."""
    vision_feature_layer: int | None = None
    """The encoder's layer that is projected; unset: -2, or the last map of a convolutional trunk."""
    image_tokens: Literal["patches", "regions", "mean"] = "patches"
    """What of the picture stands before the caption: all patches, or (less to read and keep) means of six regions
    or only the mean of all."""
    projection_type: Literal["linear", "mlp"] = "linear"
    """The map from vision width to language width."""
    projection_start: Literal["random", "ridge"] = "random"
    """Where it begins: anywhere, or (ridge, linear only) at the best linear guess of a caption's words."""
    lora: bool = True
    """Train low-rank adapters on the decoder's attention; --no-lora trains the whole decoder."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    lora_alpha: int = Field(default=16, ge=1)
    """Scale of the adapters: alpha / r."""
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the adapters."""
    freeze_vision: bool = True
    """Leave the encoder as it is. An encoder from random weights always trains."""
    unfreeze_vision_layers: int = Field(default=0, ge=0)
    """Train the encoder's last layers all the same; --no-freeze-vision trains all of it."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations instead of keeping them; auto: where memory needs it."""
    pack: bool | None = None
    """Put all captions of a picture into one row behind one prefix, instead of a row a caption; unset: where the
    decoder computes the same of both."""

    # -- optimization
    objective: Literal["likelihood", "cider"] = "likelihood"
    """What is learned: people's captions word by word, or (cider, after that) captions that score well."""
    samples_per_picture: int = Field(default=5, ge=2)
    """With --objective cider: captions drawn of each picture in a step, and set against each other."""
    sample_temperature: float = Field(default=0.5, gt=0, le=1)
    """With --objective cider: of those draws; at 1 most hold a word of nonsense, and it learns little else."""
    num_train_epochs: float = Field(default=3, gt=0)
    """Passes over the training pictures."""
    max_steps: int | None = Field(default=None, ge=1)
    """End after this many optimizer steps at the latest."""
    batch_size: int = Field(default=4, ge=1)
    """Pictures (each with all its captions) that a process holds at once."""
    gradient_accumulation_steps: int = Field(default=16, ge=1)
    """Batches in an optimizer step."""
    projection_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the projection."""
    lora_lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate of the adapters, or of the whole decoder with --no-lora."""
    muon_lr: float | None = Field(default=None, gt=0)
    """With --no-lora: train the matrices of the decoder's layers by Muon, at this peak learning rate."""
    vision_lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate of unfrozen vision layers."""
    scratch_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of an encoder or decoder that begins from random weights."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decay of matrices; norms and biases are not decayed."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps in which the learning rate rises; never more than a tenth of the run."""

    # -- evaluation and what is kept
    eval_steps: int = Field(default=100, ge=0)
    """Optimizer steps between evaluations; 0: only at the end."""
    eval_images: int = Field(default=64, ge=1)
    """Validation pictures that are captioned and scored at every evaluation."""
    num_beams: int = Field(default=3, ge=1)
    """Beams of those captions, and the default that the saved model carries."""
    save_steps: int = Field(default=100, ge=0)
    """Optimizer steps between resumable states; 0: only at the end."""
    save_dir: Path | None = None
    """Also copy the finished model here."""
    consensus: bool = False
    """Save beside the model what the captions say of the training pictures (up to 6,000): it then chooses among the
    captions of a beam search and some drawn ones. The captions become part of the model folder."""
    save_adapter: bool = False
    """Also save the adapter in PEFT form, beside the merged model."""
    debug: bool = False
    """Print expected and got captions at every evaluation (and the traceback of an error)."""
    plan: bool = False
    """Tell what the run would need and take, from five steps; train nothing."""
    push_to_hub: bool = False
    """Upload the finished model (comes with the export verbs)."""
    model_id: str | None = None
    """The repository to upload to."""
    tag: str | None = None
    """A tag for the uploaded revision."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.push_to_hub:
            raise ValueError(
                "--push-to-hub is not here yet: train without it, and upload the model folder yourself."
            )
        if (self.model_id or self.tag) and not self.push_to_hub:
            raise ValueError("--model-id and --tag say where to upload to; they come with --push-to-hub.")
        if self.augment and self.mirror:
            raise ValueError("--augment mirrors pictures already; leave out --mirror.")
        if self.augment and self.cache_features == "on":
            raise ValueError(
                "--augment changes pixels at every step, so --cache-features on cannot hold; choose one."
            )
        if self.dataset_weights and len(self.dataset_weights) != len(self.dataset):
            raise ValueError(f"--dataset-weights needs {len(self.dataset)} numbers, one for each data set.")
        if self.base_model and (self.encoder_model or self.decoder_model or self.preset):
            raise ValueError(
                "--base-model brings its own encoder and decoder; leave out --encoder-model, --preset."
            )
        if self.projection_start == "ridge" and (self.projection_type != "linear" or self.base_model):
            raise ValueError("--projection-start ridge is for a new linear projection; leave it out.")
        if self.objective == "cider" and not (self.base_model or self.resume):
            raise ValueError(
                "--objective cider improves a model that captions already: train one without it, and name it here "
                "as --base-model."
            )
        if self.objective == "cider" and self.metric_for_best_model == "eval_loss":
            raise ValueError(
                "--objective cider learns what scores well, not what is likely, and its eval_loss may rise: add "
                "--metric-for-best-model CIDEr."
            )
        if self.objective == "cider" and self.shard:
            raise ValueError("--objective cider draws captions within a step and cannot --shard; leave one out.")
        if self.objective != "cider":
            self._refuse_set("is of --objective cider", "samples_per_picture", "sample_temperature")
        if self.base_model:
            brought = "feature_extractor_model", "vision_feature_layer", "image_tokens", "projection_type"
            self._refuse_set("is what --base-model brings of its own", *brought)
        if self.preset and self.encoder_model and self.decoder_model:
            raise ValueError(f"--preset {self.preset} names models, and yours are named already; leave it out.")
        if self.unfreeze_vision_layers and not self.freeze_vision:
            raise ValueError(
                "--no-freeze-vision trains the whole encoder, --unfreeze-vision-layers its last layers; choose one."
            )
        if self.freeze_vision and not self.unfreeze_vision_layers:
            self._refuse_set("is of an encoder's layers that train (--unfreeze-vision-layers)", "vision_lr")
        if not self.lora:
            self._refuse_set("shapes the adapters that --no-lora does without", *_ADAPTER)
        if self.augment:
            self._refuse_set("is of the feature cache, which --augment cannot use", "cache_int8", "prune_cache")
        if self.base_model_revision and not self.base_model:
            raise ValueError("--base-model-revision says which --base-model; give that too.")
        if self.consensus and self.shard:
            raise ValueError(
                "--consensus reads the encoder's features at the end and cannot --shard; leave one out."
            )
        if self.muon_lr and self.lora:
            raise ValueError("--muon-lr trains the decoder's own matrices; add --no-lora.")
        if self.cache_int8 and self.cache_features == "off":
            raise ValueError("--cache-int8 needs the feature cache; leave out --cache-features off.")
        if self.prune_cache and self.cache_features == "off":
            raise ValueError("--prune-cache removes the feature cache; leave out --cache-features off.")
        if self.preset == "scratch" and (self.encoder_model or self.decoder_model):
            raise ValueError("--preset scratch takes no stock models; leave it out to use yours.")
        return self

    def _refuse_set(self, why: str, *names: str) -> None:
        """Raises ValueError where one of these is set, and would be ignored."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name.replace('_', '-')} {why}: it would change nothing; leave it out.")

    def subject(self) -> str:
        """The data sets: "flickr+coco", "my_photos"."""
        return "+".join(Path(name).stem if exists(name) else name.split("/")[-1] for name in self.dataset)

    def loop(self) -> Loop:
        return Loop(
            epochs=self.num_train_epochs,
            steps=self.max_steps,
            batch_size=self.batch_size,
            accumulation=self.gradient_accumulation_steps,
            eval_every=self.eval_steps,
            checkpoint_every=self.save_steps,
        )

    def warmup(self, total_steps: int) -> int:
        return min(self.warmup_steps, total_steps // 10)

    def with_preset(self, given: Container[str] = ()) -> TrainConfig:
        """Fills in what the preset says and the person did not: the encoder, the decoder, the batch.

        Args:
            given: settings that the person named, be it as they are anyway.

        Raises:
            ValueError: a setting is of a pretrained part, and that part begins from random weights.

        Without ``preset``: `balanced` where any data set is named in the catalogue or on the hub, else `scratch`.
        A name that is a path on this machine is a person's own folder.
        """
        preset = self.preset
        if self.base_model or (self.encoder_model and self.decoder_model):
            self._refuse_set("is for parts that begin from random weights, and none does here", "scratch_lr")
            return self
        if preset is None:
            own = all(Path(name).exists() for name in self.dataset) or set(self.dataset) <= {"scenes"}
            preset = "scratch" if own else "balanced"
        fields = type(self).model_fields
        missing = {
            name: value
            for name, value in PRESETS[preset].items()
            if name not in given and getattr(self, name) == fields[name].default
        }
        filled = self.model_copy(update=missing)
        if not filled.encoder_model:
            why = "is for an encoder that knows something, and here it begins from random weights"
            filled._refuse_set(why, "unfreeze_vision_layers", "vision_lr", "cache_int8")
        if not filled.decoder_model:
            filled._refuse_set("is for a decoder that can speak, and here it begins from random weights", *_ADAPTER)
            why = "is of a decoder that can speak, and here one begins from random weights at --scratch-lr"
            filled._refuse_set(why, "lora_lr")
        return filled
