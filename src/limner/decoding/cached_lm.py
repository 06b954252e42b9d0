"""Our own cached forward of the decoder-only families, made for decoding and nothing else.

What it does that a general forward does not:

- Keys and values lie in one block in which a step moves nothing, and all beams read one copy of their prefix
  (`KVState`).
- The vocabulary-wide head runs for the last position only; so do, while a prefix is read, the last layer's queries
  and feed-forward.
- Matrices are packed for the machine (`linear`), in fp32, bf16 or int8; the residual stream stays in fp32.
- Few, small operations, on CPUs called by TorchScript: with one row, a step's time beside the weights' bytes is
  what calling them costs, and from Python that is over twice as much (docs/LOG.md).

Letters in the shape comments:
    A  prefixes running     G  rows (beams) of each     T  positions: P of a prefix, or G     S  cached
    H  query heads          Hkv  key-value heads        r = H / Hkv     K  head width         D  model width
    n  number of a layer    V  vocabulary
"""

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.decoding.kv_state import KVState
from limner.decoding.linear import kernel
from limner.decoding.recorded import Recorded, cuda_graph
from limner.decoding.step_model import Prefix, special_tokens
from limner.decoding.weights import Matrix, Norm, Weights, read_weights, stacked
from limner.device import give_back_freed_memory, multiplies

_ROWS_A_THREAD = 400
"""Positions of prefixes that are read at once, for each thread: enough for full speed of the products, and their
feed-forward's 5 MB stay in the cache (docs/LOG.md)."""


class _Norms(nn.Module):
    """RMSNorm or LayerNorm, the n-th of several: (..., D) -> (..., D), in the stream's precision."""

    biases: list[Tensor | None]

    def __init__(self, norms: list[Norm], weights: Weights, dtype: torch.dtype) -> None:
        super().__init__()
        D = len(norms[0].weight)
        self.root_mean_square, self.epsilon = weights.root_mean_square, weights.epsilon
        factor = math.sqrt(D) if self.root_mean_square else 1.0
        self.weights = [norm.weight.to(dtype) * factor for norm in norms]
        self.biases = [None if norm.bias is None else norm.bias.to(dtype) for norm in norms]
        self.least = self.weights[0].new_tensor(math.sqrt(D * weights.epsilon))

    def forward(self, x: Tensor, n: int) -> Tensor:
        weight = self.weights[n]
        if self.root_mean_square:
            # x w / sqrt(mean(x^2) + e) = x (w sqrt(D)) / hypot(|x|, sqrt(D e)); torch's own takes twice the time
            length = torch.hypot(torch.linalg.vector_norm(x, 2, [-1], True), self.least)
            return (x * weight).div_(length)
        return F.layer_norm(x, weight.shape, weight, self.biases[n], self.epsilon)


class _Layers(nn.Module):
    """What happens to the stream between embedding and head, over whole prefixes (`read`) or one token (`step`).

    Args:
        dtype: the stream's.
        packed: the product of all layers' matrices of one kind.
    """

    def __init__(
        self, weights: Weights, dtype: torch.dtype, packed: Callable[[list[Matrix], bool], nn.Module]
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = weights.num_heads, weights.num_kv_heads
        self.head_width = weights.head_width
        self.gated, self.activation = weights.gated, weights.activation
        layers = weights.layers
        self.attention_norm = _Norms([layer.attention_norm for layer in layers], weights, dtype)
        self.qkv = packed([layer.qkv for layer in layers], True)
        self.attention_output = packed([layer.attention_output for layer in layers], False)
        self.feed_forward_norm = _Norms([layer.feed_forward_norm for layer in layers], weights, dtype)
        self.expand = packed([layer.expand for layer in layers], False)
        self.contract = packed([layer.contract for layer in layers], False)

    @torch.jit.export
    def read(self, x: Tensor, turn: Tensor | None, caches: list[Tensor], allowed: Tensor | None) -> Tensor:
        """Whole prefixes, (A, P, D) -> (A, 1, D): in the last layer, only what the last position needs.

        Args:
            turn: complex (A or 1, P, 1, K / 2), by which queries and keys are turned; None: positions are learned.
            caches: each layer's (2, A, Hkv, S, K), where keys and values go.
            allowed: (A, 1, P, P) added to the scores; None: what is causal.
        """
        for n, cache in enumerate(caches):
            query, keys_values = self._heads(x, turn, n)
            keys, values = cache.narrow(3, 0, x.shape[1]).copy_(keys_values).unbind(0)
            is_causal = allowed is None
            if n == len(caches) - 1:
                query, x, is_causal = query[:, -1:], x[:, -1:], False
                allowed = None if allowed is None else allowed[:, :, -1:]
            query = query.to(keys.dtype).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=allowed, is_causal=is_causal, enable_gqa=True
            )  # (A, H, P, K)
            x = self._added(x, mixed.transpose(1, 2).flatten(2), n)
        return x

    @torch.jit.export
    def step(
        self,
        x: Tensor,
        turn: Tensor | None,
        added: Tensor | None,
        indices: Tensor | None,
        new: list[Tensor],
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """One new token of each row, (A, G, D) -> (A, G, D).

        Args:
            turn: complex (A or 1, 1, 1, K / 2), or None.
            added: to the scores, (A Hkv, 1, G r, S); None: nothing.
            indices: `KVState.indices`.
            new, keys, values: `KVState.places`.
        """
        A, G, _ = x.shape
        Hkv, r = self.num_kv_heads, self.num_heads // self.num_kv_heads
        for n in range(len(new)):
            query, keys_values = self._heads(x, turn, n)  # (A, G, H, K)
            if indices is None:
                new[n].copy_(keys_values)
            else:
                new[n].index_copy_(3, indices, keys_values.to(new[n].dtype))
            # Query heads that share keys stand as further queries of one head, beams too: one read of the cache.
            query = query.to(keys[n].dtype).view(A, G, Hkv, r, -1).transpose(1, 2).reshape(A * Hkv, 1, G * r, -1)
            mixed = F.scaled_dot_product_attention(query, keys[n], values[n], attn_mask=added)  # (A Hkv, 1, G r, K)
            x = self._added(x, mixed.view(A, Hkv, G, r, -1).transpose(1, 2).reshape(A, G, -1), n)
        return x

    def _heads(self, x: Tensor, turn: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
        """Queries (A, T, H, K) and keys with values (2, A, Hkv, T, K) of the stream (A, T, D)."""
        A, T, _ = x.shape
        H, Hkv, K = self.num_heads, self.num_kv_heads, self.head_width
        qkv = self.qkv(self.attention_norm(x, n), n)
        if turn is not None:
            qkv = qkv.to(x.dtype)
            pairs = torch.view_as_complex(qkv.view(A, T, H + 2 * Hkv, K // 2, 2))
            pairs.narrow(2, 0, H + Hkv).mul_(turn)
        query, keys_values = qkv.view(A, T, H + 2 * Hkv, K).split_with_sizes([H, 2 * Hkv], 2)
        return query, keys_values.view(A, T, 2, Hkv, K).permute(2, 0, 3, 1, 4)

    def _added(self, x: Tensor, mixed: Tensor, n: int) -> Tensor:
        """The stream (A, T, D) with the attention's result (A, T, H K) and the feed-forward added to it."""
        x += self.attention_output(mixed, n)
        inner = self.expand(self.feed_forward_norm(x, n), n)
        if self.gated:
            gate, up = inner.chunk(2, -1)
            inner = self._activated(gate).mul_(up)
        else:
            inner = self._activated(inner)
        x += self.contract(inner, n)
        return x

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "silu":
            return F.silu(x)
        if self.activation == "relu":
            return F.relu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")


class _Head(nn.Module):
    """The stream (R, D) after the last layer -> logits (R, V)."""

    def __init__(self, norm: _Norms, product: nn.Module) -> None:
        super().__init__()
        self.norm, self.product = norm, product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.norm(x, 0), 0)


def _scripted(module: nn.Module, device: torch.device) -> Any:
    """The module as TorchScript runs it on a CPU; on a GPU, for which it would compile kernels, as Python does."""
    if device.type != "cpu":
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to retire scripts, which is nothing that a user can mend
        return torch.jit.script(module)


def _version(lm: Any) -> int:
    """Grows with each change in place of a parameter, as by an optimizer's step."""
    return sum(parameter._version for parameter in lm.parameters() if not parameter.is_inference())


class CachedStepModel:
    """Llama, Mistral, Qwen2, GPT-2 (also inside peft) and `GPTModel`, from their weights as they are now.

    Args:
        dtype: of matrices, and of the cache where the machine multiplies it (else that is fp32); None: the model's
            own. Weights that have it already are shared with the model, but for queries, keys and values.
        quantize: "int8" for matrices in 8 bits; ``dtype`` is then the cache's.
        release: the model gives up each matrix as soon as it is packed here. Its embedding stays.

    Raises:
        UnknownModel: another family, or a variant that is not computed here.
        ValueError: the model has given up its weights; in `prefill`, they are no longer those that were read here.
    """

    @torch.no_grad()
    def __init__(
        self, lm: Any, dtype: torch.dtype | None = None, quantize: str | None = None, release: bool = False
    ) -> None:
        weights = read_weights(lm)
        self.device = weights.embedding.device
        of_weights = dtype or weights.embedding.dtype
        self.dtype = of_weights if multiplies(of_weights, self.device) else torch.float32
        """Of queries, keys, values and what is made of them."""
        self.stream = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.eos_token_ids, self.pad_token_id = special_tokens(getattr(lm, "generation_config", None), lm.config)
        self.weights: Weights = weights
        self.record = cuda_graph if self.device.type == "cuda" else None

        def packed(matrices: list[Matrix], pair: bool) -> nn.Module:
            def one_by_one() -> Iterator[Matrix]:
                for matrix in matrices:
                    yield self._paired(matrix) if pair else matrix
                    # A tied head is the embedding too, and stays.
                    if release and matrix.weights[0].data_ptr() != weights.embedding.data_ptr():
                        matrix.release()

            return kernel(matrices, of_weights, quantize)(one_by_one())

        self.layers = _scripted(_Layers(weights, self.stream, packed), self.device)
        # the largest one last, when the others have been released
        final_norm = _Norms([weights.final_norm], weights, self.stream)
        self.head = _scripted(_Head(final_norm, packed([weights.head], False)), self.device)
        if release:
            give_back_freed_memory()
        self.source = weakref.ref(lm)
        self.version = _version(lm)
        self.rotations = torch.empty(0, weights.head_width // 2, dtype=torch.complex64, device=self.device)

    def _paired(self, qkv: Matrix) -> Matrix:
        """The map to queries, keys and values as one weight in which the two numbers that a rotation turns stand
        side by side: then it is a product of complex numbers. Scores do not change when queries and keys are
        permuted alike."""
        weights = self.weights
        if weights.frequencies is None:
            return qkv
        weight, bias = stacked(qkv, qkv.weights[0].dtype)
        numbers = torch.arange(len(weight), device=weight.device).view(-1, 2, weights.head_width // 2)
        turned = weights.num_heads + weights.num_kv_heads
        order = torch.cat([numbers[:turned].transpose(1, 2).flatten(), numbers[turned:].flatten()])
        return Matrix([weight[order]], [None if bias is None else bias[order]])

    @torch.inference_mode()
    def prefill(self, prefix: Prefix, max_new_tokens: int, num_beams: int = 1) -> tuple[Tensor, KVState]:
        lm = self.source()
        if lm is not None and _version(lm) != self.version:
            raise ValueError(
                "The model's weights have changed since; make a new step model of it with step_model()."
            )
        weights, A, P = self.weights, prefix.batch, prefix.length
        prefix.require_width(weights.embedding.shape[1])
        positions = prefix.positions(self.device)  # (A or 1, P)
        self._make_rotations(P + max_new_tokens)
        room = P + num_beams * max_new_tokens
        shape = (len(weights.layers), 2, A, weights.num_kv_heads, room, weights.head_width)
        real = None if prefix.mask is None else prefix.mask.to(self.device)
        recorded = Recorded(self.record) if self.record else None
        state = KVState(shape, self.dtype, positions[:, -1] + 1, P, real, recorded)
        allowed = None if real is None else self._causal(real)
        x = self._embedded(prefix.ids, prefix.embeds, positions, state.longest)  # (A, P, D)
        last = self._read(x, self._turn(positions), state.layers, allowed)  # (A, D)
        state.used = P
        return self.head(last), state

    def _read(self, x: Tensor, turn: Tensor | None, caches: tuple[Tensor, ...], allowed: Tensor | None) -> Tensor:
        """`_Layers.read` for the last positions (A, D), on CPUs for a few prefixes at a time: what a layer makes of
        them then stays in the processor's cache, and takes less memory."""
        A, P, _ = x.shape
        at_once = max(1, A if self.device.type != "cpu" else _ROWS_A_THREAD * torch.get_num_threads() // P)
        lasts = []
        for begin in range(0, A, at_once):
            some = slice(begin, begin + at_once)
            turns = turn if turn is None or len(turn) == 1 else turn[some]
            seen = None if allowed is None else allowed[some]
            lasts.append(self.layers.read(x[some], turns, [cache[:, some] for cache in caches], seen))
        return torch.cat(lasts)[:, 0]

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: KVState) -> Tensor:
        A, G = state.num_prefixes, state.num_rows
        added = state.begin_step(self.weights.num_kv_heads, self.weights.num_heads // self.weights.num_kv_heads)
        positions = state.position[:, None]  # (A or 1, 1)
        x = self._embedded(state.by_slot(tokens).view(A, G), None, positions, state.longest)  # (A, G, D)
        turn = self._turn(positions)
        inputs, places = (x, turn, added, state.indices()), state.places()
        if state.recorded is None:
            x = self.layers.step(*inputs, *places)
        else:
            key = state.block.data_ptr(), A, G
            x = state.recorded(lambda *held: self.layers.step(*held, *places), inputs, key)
        state.end_step()
        return self.head(state.by_row(x.flatten(0, 1)))

    @torch.inference_mode()
    def reorder(self, rows: Tensor, state: KVState) -> None:
        state.reorder(rows)

    def _embedded(self, ids: Tensor | None, embeds: Tensor | None, positions: Tensor, longest: int) -> Tensor:
        """The stream (A, T, D) before the first layer, for ids (A, T) or embeddings at positions (A or 1, T)."""
        if embeds is None:
            assert ids is not None
            embeds = F.embedding(ids.to(self.device), self.weights.embedding)
        x = embeds.to(self.device, self.stream, copy=True)  # layers add to it in place
        learned = self.weights.positions
        if learned is not None:
            if longest > len(learned):
                raise ValueError(
                    f"The model has positions for {len(learned)} tokens, prefix included, and token {longest} was "
                    "asked for; shorten the prefix or lower max_new_tokens."
                )
            x += F.embedding(positions, learned)
        return x

    def _causal(self, real: Tensor) -> Tensor:
        """What is added to the scores of padded prefixes, (A, 1, P, P): 0 or -inf."""
        P = real.shape[1]
        seen = torch.ones(P, P, dtype=torch.bool, device=self.device).tril() & real[:, None]
        seen |= torch.eye(P, dtype=torch.bool, device=self.device)  # a softmax over nothing is NaN
        return torch.zeros(seen.shape, dtype=self.dtype, device=self.device).masked_fill_(~seen, -math.inf)[:, None]

    def _turn(self, positions: Tensor) -> Tensor | None:
        if self.weights.frequencies is None:
            return None
        return self.rotations[positions, None]

    def _make_rotations(self, length: int) -> None:
        frequencies = self.weights.frequencies
        if frequencies is None or len(self.rotations) >= length:
            return
        angles = torch.arange(length, device=self.device)[:, None].float() * frequencies.float()  # (length, K / 2)
        self.rotations = torch.polar(
            torch.full_like(angles, self.weights.rotary_scale).to(self.stream), angles.to(self.stream)
        )
