"""Settings of ``limner pretrain``: a GPT from raw text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field, model_validator

from limner.config.training import Loop, TrainSettings

PRESET_NAMES = ("nano", "small", "medium", "large", "xlarge", "gpt2-124m")

_SHAPE = (
    "width",
    "num_heads",
    "num_layers",
    "qkv_bias",
    "tie_embeddings",
    "feed_forward_width",
    "activation",
    "norm_epsilon",
)
"""What trained weights bring with them."""

_Prompts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


class PretrainConfig(TrainSettings):
    """Pretrain a GPT from raw text."""

    LENGTH_FIELDS = frozenset({"epochs", "steps"})
    WARM_START = "--init-from"

    config: Annotated[str, tyro.conf.arg(aliases=["-c"])] = "nano"
    """The model's preset (nano, small, medium, large, xlarge, gpt2-124m), or a YAML file with any of these
    settings, which other arguments override."""
    plan: bool = False
    """Tell the model's parts, its memory and the run's length; train nothing."""

    # -- text
    corpus: str = "verdict"
    """What to learn from: tiny (comes with Limner), verdict, shakespeare, tinystories, wikitext-2, scenes (captions
    of the demo), a text file, a folder of text files, or a hub data set (owner/name)."""
    tokenizer: str | None = None
    """gpt2 (50,257 tokens), byte (256, no download), bpe (trained on the corpus), a run's, a folder or a hub id;
    unset: gpt2, or with --init-from the model's own."""
    vocab_size: int = Field(default=4096, ge=257)
    """Tokens of the bpe tokenizer."""
    val_split: float = Field(default=0.1, gt=0, lt=1)
    """Share of the text, at its end, that is held back for validation."""
    context_length: int | None = Field(default=None, ge=1)
    """Tokens in a window; unset: the preset's."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens between the beginnings of two windows; unset: the context length, so that windows do not overlap."""
    cache_dir: Path = Path("cache")
    """Where fetched texts and encoded tokens are kept."""

    # -- model: what is unset is the preset's
    width: int | None = Field(default=None, ge=1)
    """Width of the model."""
    num_heads: int | None = Field(default=None, ge=1)
    """Attention heads; they divide the width."""
    num_layers: int | None = Field(default=None, ge=1)
    """Transformer blocks."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of values that is set to zero in training (0.1 in the presets); 0, or from 0.004 to 0.996."""
    qkv_bias: bool | None = None
    """Biases on queries, keys and values, as GPT-2 has them."""
    tie_embeddings: bool | None = None
    """Let the head use the token embedding's matrix: fewer parameters."""
    feed_forward_width: int | None = Field(default=None, ge=1)
    """Width inside the feed-forward; unset: four times the model's."""
    activation: Literal["gelu_tanh", "gelu", "relu"] | None = None
    """The feed-forward's; gelu_tanh, GPT-2's, in the presets."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """What keeps the norms from dividing by zero (1e-5 in the presets)."""
    attention: Literal["sdpa", "manual"] = "sdpa"
    """sdpa is fast; manual writes the attention weights out, for reading."""
    init_from: str | None = None
    """Begin from these weights (a finished run, a model folder, a GPT-2-family hub id) instead of random ones."""

    # -- optimization
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training text; unset: 10, or as many as --steps needs."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; where epochs are given too, the smaller number wins."""
    batch_size: int = Field(default=8, ge=1)
    """Windows that a process holds at once."""
    grad_accum_steps: int = Field(default=1, ge=1)
    """Batches in an optimizer step."""
    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decay of matrices; norms and biases are not decayed."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps in which the learning rate rises; never more than a tenth of the run."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a better validation loss before the run ends early; 0: never."""

    # -- evaluation and what is kept
    eval_freq: int | None = Field(default=None, ge=0)
    """Optimizer steps between evaluations; 0: only before the first and after the last; unset: a tenth of the run,
    at most 50."""
    eval_iters: int = Field(default=5, ge=1)
    """Validation batches of an evaluation: always the same ones."""
    sample_prompt: _Prompts = ()
    """A text that the model continues at every evaluation; may be given several times. Unset: the first words of
    the validation text."""
    sample_tokens: int = Field(default=40, ge=1)
    """Tokens of a sample."""
    save: bool = False
    """Keep the states of all --checkpoint-freq steps for good; otherwise only what a resume needs, and the best."""
    checkpoint_freq: int = Field(default=500, ge=0)
    """Optimizer steps between resumable states; 0: only at the end and when stopped."""
    save_total_limit: int = Field(default=1, ge=1)
    """Resumable states that are kept, besides the best one."""

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.config not in PRESET_NAMES:
            raise ValueError(
                f"--config is a preset ({', '.join(PRESET_NAMES)}) or a YAML file; not '{self.config}'."
            )
        if self.init_from or self.config == "gpt2-124m":
            brings = "--init-from" if self.init_from else "--config gpt2-124m (trained weights from the hub)"
            if any(getattr(self, name) is not None for name in _SHAPE):
                raise ValueError(f"{brings} brings the model's shape; leave out --width, --num-heads and the like.")
            if self.tokenizer == "bpe":
                raise ValueError(f"{brings} brings a tokenizer that the model knows; leave out --tokenizer bpe.")
        if self.init_from and self.config != type(self).model_fields["config"].default:
            raise ValueError(
                f"--init-from brings the model's shape; leave out --config {self.config}, and give the windows' "
                "length as --context-length."
            )
        if self.dropout and not 0.004 <= self.dropout <= 0.996:
            raise ValueError(f"--dropout is counted in 256ths: give 0, or from 0.004 to 0.996; not {self.dropout}.")
        if self.tokenizer != "bpe" and self.vocab_size != type(self).model_fields["vocab_size"].default:
            raise ValueError("--vocab-size is that of --tokenizer bpe; leave it out, or train that tokenizer.")
        if self.save and self.save_total_limit != type(self).model_fields["save_total_limit"].default:
            raise ValueError("--save keeps all states and --save-total-limit only some; leave one of them out.")
        if self.save and not self.checkpoint_freq:
            raise ValueError("--save keeps the states of all --checkpoint-freq steps; give these, or leave it out.")
        return self

    def subject(self) -> str:
        """The preset and the corpus: "nano-verdict"."""
        return f"{self.config}-{Path(self.corpus).stem}"

    def loop(self) -> Loop:
        return Loop(
            epochs=self.epochs if self.epochs is not None or self.steps is not None else 10.0,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulation=self.grad_accum_steps,
            eval_every=self.eval_freq,
            checkpoint_every=self.checkpoint_freq,
            keep_numbered=self.save,
        )

    def warmup(self, total_steps: int) -> int:
        return min(self.warmup_steps, total_steps // 10)

    def overrides(self) -> dict[str, Any]:
        """The model's fields that were set, by their names in `GPTConfig`."""
        fields = {name: getattr(self, name) for name in ("context_length", "dropout", *_SHAPE)}
        return {name: value for name, value in fields.items() if value is not None} | {"attention": self.attention}


def from_yaml(path: Path) -> PretrainConfig:
    """The settings of a YAML file; names as on the command line, with - or _.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds no settings, or wrong ones.
    """
    import difflib

    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"--config is a preset ({', '.join(PRESET_NAMES)}) or a YAML file; not '{path}'.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings (lines of the form name: value).")
    settings = {str(name).replace("-", "_"): value for name, value in settings.items()}
    for name in settings.keys() - PretrainConfig.model_fields.keys():
        near = difflib.get_close_matches(name, PretrainConfig.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; `limner pretrain --help` tells all."
        raise ValueError(f"{path}: there is no setting '{name}'{hint}")
    if settings.get("config", "nano") not in PRESET_NAMES:
        raise ValueError(
            f"{path}: its config is a preset ({', '.join(PRESET_NAMES)}), not another file; "
            f"'{settings['config']}' is none."
        )
    for name in ("sample_prompt", "report_to"):  # lists, whose only member may stand alone
        if isinstance(settings.get(name), str):
            settings[name] = [settings[name]]
    return PretrainConfig(**settings)
