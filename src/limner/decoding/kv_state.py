"""Keys and values of a batch: one block, allocated once, in which nothing moves that need not.

A prefix is read once and lies in one *slot*. All rows (beams) of the prefix look at it there. Each step writes the
keys and values of the rows' new tokens side by side behind it, and they stay where they are: that beams are
reordered only changes the mask, which says at which of them each row looks. A finished prefix leaves a hole, into
which the last one is moved: one copy, however large the batch is.

Letters in the shape comments:
    L  layers     A  prefixes running     G  rows of each     R = A G rows     S  positions     K  head width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.decoding.recorded import Recorded

_NEVER = float("-inf")


class KVState:
    """Where a batch stands.

    Args:
        shape: (L, 2, A, heads, S, K): layers, keys and values, slots, key-value heads, positions, head width.
        position: (A,) the position of each prefix's next token, or (1,) where it is the same in all.
        longest: P, the positions that a prefill fills.
        real: (A, P) bool, False where a prefix is padded; None: nowhere.
        recorded: by whom a step's work is replayed, for which shapes may not grow: a step then sees the whole
            block, what is not written yet hidden.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        position: Tensor,
        longest: int,
        real: Tensor | None,
        recorded: Recorded | None = None,
    ) -> None:
        self.device = position.device
        self.recorded = recorded
        self._hold((torch.zeros if recorded else torch.empty)(shape, dtype=dtype, device=self.device))
        self.used = 0
        """Positions filled."""
        self.longest = longest
        """The greatest number of real positions of a row."""
        self.num_rows = 1
        """G."""
        self.position = position
        self.slots = torch.arange(shape[2], device=self.device)
        """(A,) the slot of each running prefix: a permutation of 0 .. A - 1."""
        self.back: Tensor | None = None
        """(A,) which running prefix lies in each slot; None where they lie in order."""
        self.mask: Tensor | None = None
        """(A, G, S) by slot, added to the scores: 0 or -inf; None where every row sees everything."""
        if real is not None or recorded:
            self.mask = self._hidden(shape[2], 1)
            seen = self.mask[:, 0, :longest]
            seen.zero_() if real is None else seen.masked_fill_(real, 0.0)

    def _hold(self, block: Tensor) -> None:
        self.block = block  # (L, 2, A0, heads, S, K); slots beyond A are free
        self.layers = block.unbind(0)

    @property
    def num_prefixes(self) -> int:
        return len(self.slots)

    def by_slot(self, rows: Tensor) -> Tensor:
        """Values of the rows (R, ...), put as their prefixes lie in the slots."""
        if self.back is None:
            return rows
        return rows.unflatten(0, (-1, self.num_rows))[self.back].flatten(0, 1)

    def by_row(self, values: Tensor) -> Tensor:
        """The other way round."""
        if self.back is None:
            return values
        return values.unflatten(0, (-1, self.num_rows))[self.slots].flatten(0, 1)

    def begin_step(self, num_kv_heads: int, heads_per_key: int) -> Tensor | None:
        """Makes room for a token of each row and shows it to its row.

        Returns:
            What is added to the scores: (A num_kv_heads, 1, G heads_per_key, seen), or None for nothing.
        """
        self._ensure_room()
        self.longest += 1
        if self.mask is None:
            return None
        new = slice(self.used, self.used + self.num_rows)
        self.mask[:, :, new].diagonal(dim1=1, dim2=2).zero_()
        seen = self.mask[:, :, : self.seen].repeat_interleave(heads_per_key, 1)
        return seen.repeat_interleave(num_kv_heads, 0)[:, None]

    @property
    def seen(self) -> int:
        """Positions that a step looks at."""
        return self.block.shape[4] if self.recorded else self.used + self.num_rows

    def places(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each layer where a step's keys and values go, (2, A, heads, G, K), or where they go by `indices`,
        (2, A, heads, seen, K); and all keys and all values with them, (A heads, 1, seen, K) each. Views, made for
        all layers at once."""
        block = self.block.narrow(2, 0, self.num_prefixes)
        new = block if self.recorded else block.narrow(4, self.used, self.num_rows)
        keys, values = block.narrow(4, 0, self.seen).flatten(2, 3).unsqueeze(3).unbind(1)
        return list(new.unbind(0)), list(keys.unbind(0)), list(values.unbind(0))

    def indices(self) -> Tensor | None:
        """(G,) the positions of a step's keys and values, where the work is recorded."""
        if not self.recorded:
            return None
        return torch.arange(self.used, self.used + self.num_rows, device=self.device)

    def end_step(self) -> None:
        self.used += self.num_rows
        self.position = self.position + 1

    def _ensure_room(self) -> None:
        missing = self.used + self.num_rows - self.block.shape[4]
        if missing > 0:  # the caller asked for fewer rows than it then made
            more = max(missing, self.num_rows * 32)
            self._hold(F.pad(self.block, (0, 0, 0, more)))
            if self.mask is not None:
                self.mask = F.pad(self.mask, (0, more), value=_NEVER)

    def _hidden(self, A: int, G: int) -> Tensor:
        """A mask that hides everything: rows are shown what they may see as it comes."""
        return torch.full((A, G, self.block.shape[4]), _NEVER, dtype=self.block.dtype, device=self.device)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row ``rows[i]`` was.

        Rows of one prefix that stand together share its slot, if every prefix keeps equally many; otherwise every
        row gets a copy of its own.
        """
        A, G = self.num_prefixes, self.num_rows
        if len(rows) == A * G and _in_order(rows):
            return
        prefixes, counts = torch.unique_consecutive(rows // G, return_counts=True)
        num_rows = int(counts[0])
        regular = bool((counts == num_rows).all()) and len(prefixes.unique()) == len(prefixes)
        if not regular:
            prefixes, num_rows = rows // G, 1
        mask = self.mask
        if mask is None and max(G, num_rows) > 1:
            mask = self._hidden(A, G)
            mask[:, :, : self.used] = 0.0
        if mask is not None:
            mask = mask[self.slots].flatten(0, 1)[rows].unflatten(0, (len(prefixes), num_rows))
        old = self.slots[prefixes]  # (A',) where the prefixes lie now
        if regular:
            self.slots = self._fill_holes(old)
        else:
            self._hold(self.block[:, :, old])
            self.position = self.position if len(self.position) == 1 else self.position[old]
            self.slots = torch.arange(len(old), device=self.device)
        self.back = None if _in_order(self.slots) else self.slots.argsort()
        self.mask = None if mask is None else mask if self.back is None else mask[self.back]
        self.num_rows = num_rows

    def _fill_holes(self, old: Tensor) -> Tensor:
        """Moves prefixes that lie beyond their new number A' into the slots that came free; the new slots (A',)."""
        A = len(old)
        if self.num_prefixes == A:
            return old
        new = old.clone()
        taken = torch.zeros(self.num_prefixes, dtype=torch.bool, device=self.device)
        taken[old] = True
        holes = (~taken[:A]).nonzero()[:, 0]
        beyond = (old >= A).nonzero()[:, 0]
        for hole, index in zip(holes.tolist(), beyond.tolist(), strict=True):
            source = int(old[index])
            self.block[:, :, hole, :, : self.used] = self.block[:, :, source, :, : self.used]
            if len(self.position) > 1:
                self.position[hole] = self.position[source]
            new[index] = hole
        if len(self.position) > 1:
            self.position = self.position[:A]
        return new


def _in_order(indices: Tensor) -> bool:
    return bool((indices == torch.arange(len(indices), device=indices.device)).all())
