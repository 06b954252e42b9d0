"""All captions of an image in one row, behind one prefix, without seeing each other.

    positions   0 ... P-1 | P P+1 P+2 | P P+1 | P P+1 P+2 P+3 |
    row         prefix    | a red box | a dog | two cats asleep | padding
    document    0 ... 0   | 1 1   1   | 2 2   | 3   3    3      | 4 ...

A token attends to what stands before it in its own document, and to the prefix. So every caption computes exactly
what it would compute in a row of its own, but the prefix, much the longest part, is computed once. Losses and
gradients are equal to those of separate rows (the tests hold Llama-, Qwen2- and GPT-2-type decoders to 1e-5).

The first token of every caption is predicted from the last position of the prefix, so that position has as many
labels as the image has captions. Labels are therefore a flat list of (position, token) pairs, and the
vocabulary-wide head runs on these positions only: none of the prefix, none of the padding.

B: rows. P: prompt length (image tokens, and BOS where the family uses one). T: caption tokens in the longest row.
S = P + T. L: labels in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass
class PackedCaptions:
    """Captions of a batch of images, ready for a language model that is fed embeddings.

    The model's input is ``cat([prompt_embeds[row_images], embed(input_ids)], dim=1)``: (B, S, D).
    """

    input_ids: torch.Tensor
    """(B, T) int64: caption tokens that are fed in. The last token of a caption is only ever a label."""
    position_ids: torch.Tensor
    """(B, S) int64, of prompt and captions; those of each caption begin at P."""
    document_ids: torch.Tensor
    """(B, S) int32: 0 the prefix, 1, 2, ... the captions; padding is a document of its own, behind them."""
    label_positions: torch.Tensor
    """(L,) int64 into the (B * S) hidden states, flattened: where a label is predicted from."""
    labels: torch.Tensor
    """(L,) int64: the tokens to predict there, EOS included."""
    label_captions: torch.Tensor
    """(L,) int64: which caption of the batch, counted in the order given, a label belongs to."""
    row_images: torch.Tensor
    """(B,) int64: the image of the batch whose prefix a row begins with."""
    num_captions: int

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that moves to the device, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}


def caption_tokens(
    captions: Iterable[str], encode: Callable[[str], list[int]], eos_id: int, max_length: int
) -> tuple[list[list[int]], int]:
    """Token ids of captions, each ended by one EOS.

    A caption longer than ``max_length`` tokens (EOS included) is cut and gets no EOS: a model must not learn that
    captions end in the middle of a thought.

    Returns:
        The ids, and how many captions were cut.

    Raises:
        ValueError: a caption without tokens.
    """
    tokens, num_cut = [], 0
    for caption in captions:
        ids = list(encode(caption))
        if not ids:
            raise ValueError(f"The caption {caption!r} has no tokens; remove it or write one.")
        num_cut += len(ids) >= max_length
        tokens.append([*ids, eos_id][:max_length])
    return tokens, num_cut


def pack_captions(
    captions: Sequence[Sequence[Sequence[int]]],
    prompt_length: int,
    pad_id: int = 0,
    pack: bool = True,
    pad_to_multiple: int = 1,
) -> PackedCaptions:
    """Lays the captions of a batch of images out in rows.

    Args:
        captions: for each image, for each of its captions, the token ids to predict, EOS included.
        prompt_length: P, positions before the first caption token.
        pad_id: any valid token; what it computes is never used.
        pack: False gives every caption a row of its own behind its own copy of the prefix: the plain way.
        pad_to_multiple: S is rounded up to this, so that compiled code meets fewer shapes.
    """
    assert prompt_length >= 1, "captions are predicted from the prompt's last position"
    rows: list[tuple[int, list[Sequence[int]]]] = []  # (image, captions)
    for image, of_image in enumerate(captions):
        assert of_image and all(of_image), "an image without captions, or a caption without tokens"
        rows += [(image, list(of_image))] if pack else [(image, [caption]) for caption in of_image]
    width = max(sum(len(caption) - 1 for caption in row) for _, row in rows)
    length = -(-(prompt_length + width) // pad_to_multiple) * pad_to_multiple  # S
    input_ids = np.full((len(rows), length - prompt_length), pad_id, dtype=np.int64)  # (B, T)
    position_ids = np.zeros((len(rows), length), dtype=np.int64)  # (B, S)
    position_ids[:, :prompt_length] = np.arange(prompt_length)
    document_ids = np.zeros((len(rows), length), dtype=np.int32)  # (B, S)
    positions: list[np.ndarray] = []
    labels: list[Sequence[int]] = []
    for b, (_, row) in enumerate(rows):
        start = prompt_length
        for document, caption in enumerate(row, 1):
            end = start + len(caption) - 1
            input_ids[b, start - prompt_length : end - prompt_length] = caption[:-1]
            position_ids[b, start:end] = np.arange(prompt_length, prompt_length + end - start)
            document_ids[b, start:end] = document
            positions.append(b * length + np.array([prompt_length - 1, *range(start, end)]))
            labels.append(caption)
            start = end
        document_ids[b, start:] = len(row) + 1
    lengths = [len(caption) for caption in labels]
    return PackedCaptions(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        document_ids=torch.from_numpy(document_ids),
        label_positions=torch.from_numpy(np.concatenate(positions)),
        labels=torch.tensor([token for caption in labels for token in caption], dtype=torch.int64),
        label_captions=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        row_images=torch.tensor([image for image, _ in rows], dtype=torch.int64),
        num_captions=len(lengths),
    )


def block_mask(
    document_ids: torch.Tensor,
    dtype: torch.dtype = torch.bool,
    position_ids: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """The attention mask of packed rows, for SDPA and eager attention.

    Args:
        document_ids: (B, S).
        dtype: bool gives True where a query may look; a float type gives 0 there and its lowest number elsewhere,
            to be added to the scores (eager attention in transformers needs that form).
        position_ids: (B, S); needed with ``window``.
        window: a query looks at fewer than this many positions back, itself included; None: at all. Places in the
            row do not count: between a caption and its prefix stand other captions.

    Returns:
        (B, 1, S, S): queries, then keys.
    """
    length = document_ids.shape[1]
    keys, queries = document_ids[:, None, None, :], document_ids[:, None, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    allowed = causal & ((keys == 0) | (keys == queries))  # (B, 1, S, S)
    if window is not None:
        assert position_ids is not None
        allowed &= position_ids[:, None, :, None] - position_ids[:, None, None, :] < window
    if dtype == torch.bool:
        return allowed
    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, lowest)


def flex_block_mask(document_ids: torch.Tensor, compile: bool = False) -> BlockMask:
    """The same mask as a FlexAttention BlockMask, which skips whole blocks of 128 x 128 that nothing looks at.

    transformers takes it as ``attention_mask`` where ``attn_implementation="flex_attention"`` (its GPT-2 cannot).
    """

    def allowed(b, h, q, k):
        return (q >= k) & ((document_ids[b, k] == 0) | (document_ids[b, k] == document_ids[b, q]))

    rows, length = document_ids.shape
    return create_block_mask(
        allowed, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=document_ids.device, _compile=compile
    )


@dataclass(frozen=True, eq=False)  # is itself a key of a cache
class LengthBuckets:
    """Rearranges an epoch so that a batch holds examples of like length, and padding shrinks.

    A pure function of (seed, epoch, index): within windows of the shuffled epoch, examples are sorted by length,
    cut into batches, and the batches shuffled. With ``window`` equal to the examples of an optimizer step, every
    step keeps exactly the examples it would have had, and only their grouping into micro-batches changes.

    Args:
        lengths: (N,) tokens of each example.
        batch_size: examples in a micro-batch.
        window: examples that are sorted together; a multiple of ``batch_size``.
    """

    lengths: np.ndarray
    batch_size: int
    seed: int
    window: int

    def __post_init__(self) -> None:
        if self.window < self.batch_size or self.window % self.batch_size:
            raise ValueError(f"The window {self.window} must be a multiple of the batch size {self.batch_size}.")

    def __call__(self, permutation: np.ndarray, epoch: int) -> np.ndarray:
        """The order of an epoch, from its shuffled order; the incomplete batch stays last."""
        arranged = []
        for number, start in enumerate(range(0, len(permutation), self.window)):
            part = permutation[start : start + self.window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            whole = len(part) // self.batch_size
            batches = part[: whole * self.batch_size].reshape(whole, self.batch_size)
            shuffled = np.random.default_rng([self.seed, epoch, number]).permutation(whole)
            arranged += [batches[shuffled].ravel(), part[whole * self.batch_size :]]
        return np.concatenate(arranged) if arranged else permutation
