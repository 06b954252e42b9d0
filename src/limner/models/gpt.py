"""A GPT from nothing, written to be read.

A language model gives, for every position of a text, a score for each token that could come next. This one is
GPT-2's architecture (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019), so that stock
tools can read what it learns (`save_pretrained`).

Read it from the bottom up or from the top down: attention mixes positions, the feed-forward works on each position
alone, a block does one after the other, the model stacks blocks between an embedding and a head:

    ids (B, T) -> token + position embedding (B, T, D)        what stands here, and where
               -> block, L times             (B, T, D)
                    + attention(norm(x))                      what the positions before have to say
                    + feed_forward(norm(x))                   what follows from it, for each position alone
               -> final norm                 (B, T, D)
               -> head                       (B, T, V)        a score for every token that could come next

The rows of width D between these parts are the "residual stream": each part reads it and adds to it, and none
overwrites it. Training compares the scores at position t with the token at t + 1, at all positions at once; to
write, the model is asked again after every token, which a `KVCache` makes cheap.

Letters in the shape comments:
    B  texts in the batch        D  width of the model          V  vocabulary
    T  positions given now       H  attention heads             L  blocks
    S  positions attended to     K  width of a head, D / H      F  width inside the feed-forward, 4 D
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.models.blocked_attention import blocked_attention
from limner.models.dropout import Dropout
from limner.models.kv_cache import KVCache

Head = Callable[[Tensor, Tensor], Any]
"""``head(hidden (..., D), weight (V, D))``: what to make of the last hidden states instead of all logits."""


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Raises:
        ValueError: the width cannot be split among the heads, a number is not positive, or a name is not known.
    """

    vocab_size: int = 50257
    context_length: int = 256
    """Positions the model has embeddings for: the longest text it can look at."""
    width: int = 256
    num_heads: int = 8
    num_layers: int = 6
    dropout: float = 0.1
    qkv_bias: bool = False
    """GPT-2 has biases on queries, keys and values; many later models leave them out."""
    tie_embeddings: bool = False
    """The head uses the token embedding's matrix (Press and Wolf, 2017): V x D fewer parameters."""
    attention: Literal["sdpa", "manual"] = "sdpa"
    """"manual" writes the attention weights out (to be read and looked at); "sdpa" is torch's fused kernel."""
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    """GPT-2's GELU is the tanh approximation."""
    feed_forward_width: int | None = None
    """Width inside the feed-forward; None: four times the width."""
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "width", "num_heads", "num_layers", "feed_forward_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"A GPT's {name} must be at least 1; it is {value}.")
        if self.width % self.num_heads:
            raise ValueError(
                f"A width of {self.width} cannot be split among {self.num_heads} heads; "
                "choose a number of heads that divides the width."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"The dropout is a probability below 1; it is {self.dropout}.")
        if self.attention not in ("sdpa", "manual"):
            raise ValueError(f"The attention is 'sdpa' or 'manual'; it is '{self.attention}'.")
        if self.activation not in ("gelu_tanh", "gelu", "relu"):
            raise ValueError(f"The activation is 'gelu_tanh', 'gelu' or 'relu'; it is '{self.activation}'.")

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def inner_width(self) -> int:
        return 4 * self.width if self.feed_forward_width is None else self.feed_forward_width


PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(context_length=256, width=256, num_heads=8, num_layers=6),
    "small": GPTConfig(context_length=512, width=512, num_heads=8, num_layers=8),
    "medium": GPTConfig(context_length=1024, width=768, num_heads=12, num_layers=12),
    "large": GPTConfig(context_length=1024, width=1024, num_heads=16, num_layers=12),
    "xlarge": GPTConfig(context_length=1024, width=1024, num_heads=16, num_layers=24),
    "gpt2-124m": GPTConfig(
        context_length=1024, width=768, num_heads=12, num_layers=12, qkv_bias=True, tie_embeddings=True
    ),
}

HUB_IDS = {"gpt2-124m": "openai-community/gpt2"}
"""Presets whose trained weights lie on the hub."""


class MultiHeadAttention(nn.Module):
    """Causal scaled dot-product attention (Vaswani et al., "Attention Is All You Need", 2017).

    Every position asks a question (query), every position offers an address (key) and a content (value). The
    answer is the average of the contents, weighted by how well question and address agree. H heads do so side by
    side in H smaller spaces: one may look at the previous word while another looks for the subject.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        # One product for queries, keys and values of all heads: (D) -> (3 D), in this order.
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.output = nn.Linear(config.width, config.width)
        self.weights_dropout = Dropout(config.dropout)
        self.blocked = False  # set by `GPTModel.compile_training`

    def forward(self, x: Tensor, cache: KVCache | None = None, allowed: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            cache: where earlier positions' keys and values lie; this layer's new ones are appended.
            allowed: (B or 1, 1, T, S) bool, what each position may look at; None: itself and everything before.
        """
        B, T, D = x.shape
        H, K = self.config.num_heads, self.config.head_width
        qkv = self.qkv(x).view(B, T, 3, H, K)  # (B, T, D) -> (B, T, 3 D) -> (B, T, 3, H, K)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K): heads are a batch of their own
        if cache is not None:
            key, value = cache.append(self.layer, key, value)  # (B, H, S, K)
        # Three ways to the same numbers, (B, H, T, K). The one to read is `_manual`.
        if self.blocked and self.training and allowed is None and x.device.type == "cpu":
            mixed = blocked_attention(query, key, value, self.weights_dropout.p)
        elif self.config.attention == "manual":
            mixed = self._manual(query, key, value, allowed)
        else:
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=allowed,
                dropout_p=self.weights_dropout.p if self.training else 0.0,
                is_causal=allowed is None and T > 1,
            )
        mixed = mixed.transpose(1, 2).reshape(B, T, D)  # heads side by side again: (B, T, H, K) -> (B, T, D)
        return self.output(mixed)  # (B, T, D); lets the heads' findings be combined

    def _manual(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        """softmax(query key^T / sqrt(K) + mask) value: (B, H, T, K), (B, H, S, K) twice -> (B, H, T, K)."""
        T, S = query.shape[2], key.shape[2]
        # Why divide by sqrt(K): a dot product of K independent terms of variance 1 has variance K. Without the
        # division the scores grow with K, the softmax saturates on one position, and its gradient vanishes
        # (Vaswani et al., 2017, section 3.2.1).
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])  # (B, H, T, S)
        # Why a causal mask: every position is trained at once to predict the next token. If it could see later
        # positions, it would copy the answer, and learn nothing that helps when there is no later position (section
        # 3.2.3). A score of minus infinity becomes a weight of exactly 0.
        if allowed is None:
            allowed = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)  # (T, S)
        scores = scores.masked_fill(~allowed, float("-inf"))  # (B, H, T, S)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)  # (B, H, T, S), rows sum to 1
        # Why a softmax: weights that are positive and sum to 1 make an average, whose size does not depend on how
        # many positions are averaged, and the exponential lets a clearly better match win.
        return self.weights_dropout(weights) @ value  # (B, H, T, S) @ (B, H, S, K) -> (B, H, T, K)


class FeedForward(nn.Module):
    """Two layers applied to each position alone: D -> F -> D.

    Why it follows attention: attention only averages what positions hold already, which is linear in the values.
    Here each position works on what it has gathered; most of a transformer's knowledge sits in these matrices
    (Geva et al., "Transformer Feed-Forward Layers Are Key-Value Memories", 2021). Without the activation between
    them the two layers would be one linear map. Four times the width is the ratio of Vaswani et al. (2017); GELU
    (Hendrycks and Gimpel, 2016), x times the probability that a normal variable is below x, is a ReLU without the
    corner at zero.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.expand = nn.Linear(config.width, config.inner_width)
        self.contract = nn.Linear(config.inner_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.expand(x)  # (B, T, F)
        if self.activation == "relu":
            x = F.relu(x)
        elif self.activation == "gelu_tanh" and torch.compiler.is_compiling():
            # The same function, (1 + tanh u) / 2 being sigmoid(2 u); compiled, it takes half the time.
            x = x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
        else:
            x = F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.contract(x)  # (B, T, D)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward; each reads a normalised copy of the stream and adds its result to it.

    Why add (He et al., 2015): the sum keeps a path on which the gradient reaches every block unchanged. Why
    normalise before and not after the sum ("pre-norm", Xiong et al., 2020): after it, the norm stands on that
    path, and a deep model learns only with a careful warm-up; before it, the path stays clear.

    What the norm does (Ba et al., 2016): it brings each position's D numbers to mean 0 and variance 1, then to a
    learned scale and shift, so that a part's input has the same size however much the stream has grown.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = MultiHeadAttention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None, allowed: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, allowed))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPTModel(nn.Module):
    """Token ids in, scores of the next token out.

    Training and evaluation call ``model(ids)``. Decoding goes through `hidden` with a `KVCache`:

        cache = model.new_cache(batch=B, capacity=P + max_new_tokens)
        hidden = model.hidden(prompt, cache=cache)                    # (B, P, D), the prompt once
        logits = model.logits(hidden[:, -1])                          # (B, V)
        hidden = model.hidden(next_token[:, None], cache=cache)       # (B, 1, D), then token by token
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        # Attention has no idea of order; what tells "dog bites man" from "man bites dog" is added here.
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.num_layers))
        # The stream grows with every block; the head reads it at a fixed size, as the blocks do.
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        # One row a token: its score is the row's dot product with the stream. That is the embedding's matrix read
        # the other way round, which is why the two can be one (Press and Wolf, 2017).
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._compiled_block: Callable[[TransformerBlock, Tensor], Tensor] | None = None
        self._compiled_shape: tuple[int, int] | None = None
        self._initialize()
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def _initialize(self) -> None:
        """GPT-2's initial weights: normal with deviation 0.02, biases zero.

        The two layers of a block that write into the residual stream get 0.02 / sqrt(2 L): 2 L of them are added
        up, and the stream's variance should not grow with depth (Radford et al., 2019, section 2.3).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms begin at one and zero by themselves
            into_stream = name.endswith(("attention.output.weight", "feed_forward.contract.weight"))
            deviation = 0.02 / math.sqrt(2 * self.config.num_layers) if into_stream else 0.02
            nn.init.normal_(parameter, std=deviation)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, head: Head | None = None) -> Any:
        """ids (B, T) int64 -> logits (B, T, V); logits[:, t] scores the token at t + 1.

        Args:
            head: computes something else from the hidden states (B, T, D) and the head's matrix (V, D), such as
                a loss that never holds all logits; its result is returned.

        Raises:
            ValueError: T is beyond the context length.
        """
        hidden = self.hidden(ids)
        return self.logits(hidden) if head is None else head(hidden, self.head.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.head(hidden)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions: (B, T) -> (B, T, D); what `hidden` takes as ``embeds``."""
        return self.token_embedding(ids)

    def hidden(
        self,
        ids: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """The stream after the final norm, (B, T, D), for ids (B, T) or for token embeddings (B, T, D).

        Args:
            positions: (T) or (B, T) int64, below the context length; None: they follow on the cache's length, or
                begin at 0.
            cache: positions seen before; the T new ones are appended to it.
            visible: (B, S) bool over all S = cache.length + T positions: False hides a padding position from all
                later ones. Positions after a row's padding should then be given too.

        Raises:
            ValueError: the text is longer than the context.
        """
        if embeds is None:
            assert ids is not None
            embeds = self.embed(ids)
        x = embeds  # (B, T, D)
        past = cache.length if cache is not None else 0
        T = x.shape[1]
        if positions is None:
            if past + T > self.config.context_length:
                raise ValueError(
                    f"The model's context holds {self.config.context_length} tokens; {past + T} were given."
                )
            positions = torch.arange(past, past + T, device=x.device)
        x = self.dropout(x + self.position_embedding(positions))  # (B, T, D) + (T, D)
        allowed = None
        if visible is not None or (past and T > 1):
            allowed = _allowed(T, past + T, visible, x.device)
        compiled = self._compiled_block if self.training and x.shape[:2] == self._compiled_shape else None
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            x = compiled(block, x) if compiled else block(x, cache, allowed)  # (B, T, D)
        if cache is not None:
            cache.length += T
        return self.final_norm(x)

    def compile_training(self, batch_size: int, length: int) -> None:
        """Training batches of this shape run compiled blocks from now on; all else, in its many shapes, does not.

        One block is compiled and serves all: they differ in their weights only. On a CPU, attention takes
        `blocked_attention`, unless it is to be written out ("manual").
        """
        self._compiled_block = torch.compile(TransformerBlock.forward, dynamic=False)
        self._compiled_shape = (batch_size, length)
        for attention in self._attentions():
            attention.blocked = self.config.attention == "sdpa"

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for ``batch`` texts of at most ``capacity`` positions, in the model's dtype and place."""
        config = self.config
        shape = (config.num_layers, batch, config.num_heads, capacity, config.head_width)
        return KVCache(shape, like=self.position_embedding.weight)

    @torch.no_grad()
    def attention_maps(self, ids: Tensor) -> Tensor:
        """The attention weights of every block and head: (B, T) -> (L, B, H, T, T); each row sums to 1."""
        maps: list[Tensor] = []
        config, training = self.config, self.training
        hooks = [
            attention.weights_dropout.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
            for attention in self._attentions()
        ]
        try:
            self._set_attention(replace(config, attention="manual"))
            self.eval()
            self.hidden(ids)
        finally:
            self._set_attention(config)
            self.train(training)
            for hook in hooks:
                hook.remove()
        return torch.stack(maps)

    def _attentions(self) -> list[MultiHeadAttention]:
        return [module for module in self.modules() if isinstance(module, MultiHeadAttention)]

    def _set_attention(self, config: GPTConfig) -> None:
        for attention in self._attentions():
            attention.config = config

    def save_pretrained(self, folder: Path | str, eos_id: int | None = None) -> None:
        """Writes a stock GPT-2 checkpoint, which `transformers.AutoModelForCausalLM` loads (`gpt_stock`)."""
        from limner.models.gpt_stock import save

        save(self, Path(folder), eos_id)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **overrides: Any) -> GPTModel:
        """Reads a GPT-2-family checkpoint: a folder, a hub id, or a preset of `HUB_IDS` (`gpt_stock`).

        Args:
            overrides: `GPTConfig` fields that do not change the weights: dropout, attention.

        Raises:
            ValueError: the checkpoint is of another family, lacks weights, or computes what GPTModel cannot.
            OSError: there is no such checkpoint.
        """
        from limner.models.gpt_stock import load

        return load(HUB_IDS.get(str(name_or_path), str(name_or_path)), overrides)


def _allowed(T: int, S: int, visible: Tensor | None, device: torch.device) -> Tensor:
    """(B or 1, 1, T, S) bool: the last T of S positions may look at themselves and at visible ones before."""
    causal = torch.ones(T, S, dtype=torch.bool, device=device).tril(diagonal=S - T)  # (T, S)
    if visible is None:
        return causal[None, None]
    allowed = causal & visible[:, None, None, :]  # (B, 1, T, S)
    # A padding position looks at itself: a row with nothing to look at would have no softmax.
    own = torch.eye(T, dtype=torch.bool, device=device)
    allowed[..., S - T :] |= own
    return allowed
