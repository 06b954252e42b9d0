"""The small captioner that is trained from nothing: stock configurations, and a tokenizer made of the captions."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LevitConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"


def scratch_encoder(
    image_size: int = 96, width: int = 256, depth: int = 3, num_heads: int = 4, kernel_size: int = 3
) -> LevitConfig:
    """A LeViT (Graham et al. 2021, arXiv:2104.01136): its stem of four stride-2 convolutions learns from nothing in
    minutes what a patch embedding needs hours for, and its states are the rows of tokens that LLaVA reads.

    One stage of ``depth`` attention blocks at one sixteenth of the resolution. An empty second stage follows, so
    that ``hidden_states[-2]``, which LLaVA projects, is the first one's output.
    """
    config = LevitConfig(
        image_size=image_size,
        patch_size=16,
        kernel_size=kernel_size,
        hidden_sizes=[width, width],
        depths=[depth, 0],
        num_attention_heads=[num_heads, num_heads],
        key_dim=[32, 32],
        mlp_ratio=[2, 2],
        attention_ratio=[2, 2],
        drop_path_rate=0,
    )
    config.down_ops = [[""], [""]]  # no subsampling between the stages
    config.hidden_size = width  # LLaVA asks the vision configuration for its width by this name
    return config


def scratch_decoder(width: int = 256, depth: int = 4, num_heads: int = 4, expansion: int = 4) -> PretrainedConfig:
    """A small Llama, its feed-forward ``expansion`` times as wide; its vocabulary size is set when the tokenizer is
    known."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=expansion * width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def scratch_tokenizer(captions: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE (no word is unknown to it) trained on the captions, in lower case, which is how they are
    scored; as a stock tokenizer with BOS, EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
