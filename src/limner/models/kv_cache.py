"""What decoding remembers of a text: keys and values. Letters as in `limner.models.gpt`."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Keys and values of positions already seen, so that a new token costs one position and not the whole text.

    Allocated once, for B texts of up to ``capacity`` positions; ``length`` of them are filled. Every
    `GPTModel.hidden` call with the cache appends its T positions.

    Args:
        shape: (L, B, H, capacity, K).
        like: a tensor of the dtype and device to take.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: Tensor) -> None:
        self.keys = like.new_empty(shape)  # (L, B, H, S, K)
        self.values = like.new_empty(shape)  # (L, B, H, S, K)
        self.length = 0

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, H, T, K) after the filled positions; returns all (B, H, length + T, K) of the layer."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> KVCache:
        """A new cache whose text i is this one's text ``rows[i]``: reordering, repeating or dropping texts."""
        chosen = object.__new__(KVCache)
        chosen.keys, chosen.values = self.keys[:, rows], self.values[:, rows]
        chosen.length = self.length
        return chosen
