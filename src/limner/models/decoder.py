"""Decoder-only language models of any stock family, and what a captioner needs of their tokenizers.

The prompt of a caption is the picture's prefix, then BOS where the family uses one; the caption follows; one EOS
ends it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from limner.models.hub import load_stock

IMAGE_TOKEN = "<image>"
Say = Callable[[str], None]
"""Told one sentence about each thing that was changed to make a checkpoint fit."""

# Letters: B rows, T positions, D the embedding width, V the vocabulary.


def load_decoder(
    source: str | Path | PretrainedConfig,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    *,
    bos: bool | None = None,
    say: Say = print,
    **hub: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A causal language model with ``<image>`` in its tokenizer and room for it in its embeddings.

    Args:
        source: a hub id, a folder in stock format, or a configuration (random weights; its vocabulary size is set
            from the tokenizer).
        tokenizer: a tokenizer, or where to load it from; None: from ``source``.
        bos: whether captions begin with BOS; None: where the tokenizer adds one by itself, or has one that is not
            also its EOS.
        say: told what was changed.
        hub: ``revision`` and ``cache_dir`` for hub ids.

    Raises:
        ValueError: no tokenizer for a configuration; not a decoder; a logits formula Limner does not know.
        OSError: it cannot be found or downloaded.
    """
    if isinstance(source, PretrainedConfig):
        if tokenizer is None:
            raise ValueError("A decoder built from a configuration needs a tokenizer; give one.")
        words = _captioning_tokenizer(_load_tokenizer(tokenizer, **hub), bos, say)
        config = getattr(source, "text_config", source)
        config.vocab_size = _room(len(words))
        lm = AutoModelForCausalLM.from_config(config)
    else:
        words = _captioning_tokenizer(_load_tokenizer(tokenizer or source, **hub), bos, say)
        whole = load_stock(AutoConfig, source, "decoder", **hub)
        config = getattr(whole, "text_config", whole)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{source} ({config.model_type}) is an encoder-decoder; a captioner needs a decoder alone."
            )
        lm = load_stock(AutoModelForCausalLM, source, "decoder", config=config, dtype=torch.float32, **hub)
    _make_room(lm, len(words), say)
    for name in ("bos", "eos", "pad"):
        setattr(lm.config, f"{name}_token_id", getattr(words, f"{name}_token_id"))
    lm.generation_config = generation_config(words, embedding(lm).num_embeddings)
    check_logits(lm)
    return lm, words


def _load_tokenizer(source: str | Path | PreTrainedTokenizerBase, **hub: Any) -> PreTrainedTokenizerBase:
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    return load_stock(AutoTokenizer, source, "tokenizer", **hub)


def _captioning_tokenizer(given: PreTrainedTokenizerBase, bos: bool | None, say: Say) -> PreTrainedTokenizerFast:
    """The same pieces in the one class that every runtime reads, with ``<image>``, EOS and pad, and the chat
    template; it never adds BOS by itself, since BOS stands behind the picture."""
    backend = getattr(given, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"The tokenizer {type(given).__name__} has no `tokenizers` form, which the stock format needs."
        )
    probe = given("a")["input_ids"]
    adds_bos = given.bos_token_id is not None and probe[:1] == [given.bos_token_id] and len(probe) > 1
    if bos is None:
        bos = adds_bos or (given.bos_token_id is not None and given.bos_token_id != given.eos_token_id)
    elif bos and given.bos_token_id is None:
        raise ValueError("This tokenizer has no BOS token to begin a caption with; leave `bos` unset.")
    pieces = json.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None}
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special = {name: str(getattr(given, name)) for name in names if getattr(given, name) is not None}
    if "eos_token" not in special:
        special["eos_token"] = "<|endoftext|>"
        say("The tokenizer has no end-of-text token: <|endoftext|> was added, and ends every caption.")
    special.setdefault("pad_token", special["eos_token"])
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(pieces)),
        clean_up_tokenization_spaces=False,
        model_max_length=min(given.model_max_length, 10**9),
        padding_side="left",
        **special,
    )
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})  # type: ignore[dict-item]
    words.model_input_names = ["input_ids", "attention_mask"]
    words.chat_template = chat_template(words.bos_token if bos else "")
    return words


def chat_template(bos: str) -> str:
    """The prompt as a chat template that Python and JavaScript runtimes read alike: picture and text parts in
    their order, then (``add_generation_prompt``) BOS where the family uses one."""
    return (
        "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + bos + "{% endif %}"
    )


def prompt_bos(words: PreTrainedTokenizerBase) -> int | None:
    """The id that stands between picture and caption, read from the chat template; None where there is none."""
    picture: Any = [{"role": "user", "content": [{"type": "image"}]}]
    prompt = str(words.apply_chat_template(picture, add_generation_prompt=True, tokenize=False))
    return words.bos_token_id if prompt.removeprefix(IMAGE_TOKEN) else None


def _room(tokens: int) -> int:
    return -(-tokens // 64) * 64


def _make_room(lm: PreTrainedModel, tokens: int, say: Say) -> None:
    rows = embedding(lm).num_embeddings
    if rows < tokens:
        lm.resize_token_embeddings(_room(tokens), mean_resizing=False)
        say(
            f"The vocabulary grew from {rows} to {_room(tokens)} rows: room for {IMAGE_TOKEN}, and a multiple of "
            "64, which matrix kernels multiply fastest."
        )


def image_id(words: PreTrainedTokenizerBase) -> int:
    """The id of ``<image>``."""
    return cast(int, words.convert_tokens_to_ids(IMAGE_TOKEN))


def unused_ids(words: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """Ids that must never be said: ``<image>``, and rows of the embedding that no token has."""
    image = image_id(words)
    taken = set(words.get_vocab().values())
    return sorted({image} | (set(range(rows)) - taken))


def generation_config(words: PreTrainedTokenizerBase, rows: int) -> GenerationConfig:
    """What stock ``generate`` must know to say what Limner says: three beams, 30 tokens, nothing unused."""
    return GenerationConfig(
        num_beams=3,
        max_new_tokens=30,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        suppress_tokens=unused_ids(words, rows),
    )


# ---- the model without its head, and the head -------------------------------------------------------------------


def embedding(lm: PreTrainedModel) -> nn.Embedding:
    """The table of the vocabulary's embeddings: ids (...) -> (..., D)."""
    return cast(nn.Embedding, lm.get_input_embeddings())


def stack(lm: PreTrainedModel) -> nn.Module:
    """The decoder without its head: what ``AutoModel`` gives for the same configuration."""
    return getattr(lm, lm.base_model_prefix)  # type: ignore[call-overload]


def attention_windows(lm: PreTrainedModel) -> dict[str, int | None]:
    """How many positions its layers look back over, itself included; None: over all. By type of layer where
    transformers then takes a mask for each type; the one window of all layers stands under "".
    """
    config: Any = lm.config
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    if "sliding_attention" in types:
        return {"full_attention": None, "sliding_attention": window}
    return {"": None if types else window}


def plain_head(lm: PreTrainedModel) -> torch.Tensor | None:
    """The head's matrix (V, D) where the logits are one product with it and nothing else; None elsewhere."""
    config: Any = lm.config
    changed = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    output = lm.get_output_embeddings()
    if type(output) is not nn.Linear or output.bias is not None:
        return None
    return output.weight if all(getattr(config, name, None) is None for name in changed) else None


def head(lm: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """(..., D) -> logits (..., V), as the family computes them after its stack.

    Most are one matrix product. Granite divides and Cohere multiplies by a constant; Gemma-2 caps softly
    (Gemma Team 2024, section 2).
    """
    config: Any = lm.config
    logits = lm.get_output_embeddings()(hidden)
    if getattr(config, "logits_scaling", None) is not None:
        logits = logits / config.logits_scaling
    if getattr(config, "logit_scale", None) is not None:
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def check_logits(lm: PreTrainedModel) -> None:
    """Holds ``head(stack(...))`` of three embedded tokens against the model's own logits of these tokens.

    Raises:
        ValueError: it takes no embeddings, or they differ: the family computes in a way that is not known here.
    """
    config: Any = lm.config
    was_training = lm.training
    lm.eval()
    ids = torch.arange(3, device=embedding(lm).weight.device)[None]
    theirs = lm(input_ids=ids, use_cache=False).logits
    fed = {"inputs_embeds": embedding(lm)(ids), "attention_mask": torch.ones_like(ids), "position_ids": ids}
    try:
        ours = head(lm, stack(lm)(**fed, use_cache=False).last_hidden_state)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"Decoders of type {config.model_type} cannot be given embeddings in the place of words, which is how "
            f"they are shown a picture ({error}); take another language model."
        ) from error
    lm.train(was_training)
    if not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        raise ValueError(
            f"Decoders of type {config.model_type} compute their logits in a way Limner does not know."
        )
