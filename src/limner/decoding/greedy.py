"""One token after the other: the likeliest (greedy) or a drawn one (sampling).

Letters in the shape comments:
    B  prefixes     G  texts of each     R = B G  rows     A  rows still running
    N  max_new_tokens     V  vocabulary
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.decoding.decoder import NOTHING_LEFT, Decoded, Decoder, Job
from limner.decoding.rules import filter_draw
from limner.decoding.settings import GreedySettings
from limner.device import widest_float


class GreedyDecoder(Decoder[GreedySettings]):
    """Takes the likeliest token each time, or with a temperature above 0 draws one."""

    kind = GreedySettings

    @torch.no_grad()
    def _run(self, job: Job) -> Generator[Tensor, None, Decoded]:
        settings, model, N = self.settings, job.model, self.settings.max_new_tokens
        G = settings.num_return_sequences
        R = job.prefix.batch * G
        tokens = torch.full((R, N), job.pad, device=model.device)
        logprobs = torch.zeros(R, N, device=model.device)
        lengths = torch.zeros(R, dtype=torch.int64, device=model.device)
        endings = ["cancelled"] * R
        draws = self._draws(job) if settings.temperature else None  # (R, N)
        history, T0 = job.history(N)
        history = history.repeat_interleave(G, 0)  # (A, T0 + N)
        active = torch.arange(R, device=model.device)  # (A,) which row of the batch each running row is
        ended = torch.zeros_like(active, dtype=torch.bool)  # (A,) rows run on until all of their prefix have ended
        state = None
        for n in range(N):
            if job.cancel():
                break
            if state is None:
                logits, state = model.prefill(job.prefix, N, G)  # (B, V)
                if G > 1:
                    model.reorder(active // G, state)
                    logits = logits.repeat_interleave(G, 0)
            else:
                logits = model.step(tokens[active, n - 1], state)
            job.watch(logits)
            logits = logits.float()  # (A, V)
            scores = job.rules.apply(logits, history[:, : T0 + n], n)
            if draws is None:
                chosen = scores.argmax(1)  # (A,)
            else:
                scores = filter_draw(scores, settings.temperature, settings.top_k, settings.top_p, settings.min_p)
                chosen = _drawn(scores, draws[active, n])
            if not bool((scores.gather(1, chosen[:, None])[~ended] > float("-inf")).all()):
                raise ValueError(NOTHING_LEFT)
            history[:, T0 + n] = chosen
            going, own = active[~ended], chosen[~ended]
            tokens[going, n] = own
            logprobs[going, n] = (logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1))[~ended]
            lengths[going] = n + 1
            yield tokens[:, n].clone()
            ended |= self._note_endings(job, history[:, T0 : T0 + n + 1], active, ended, endings, last=n + 1 == N)
            if ended.any():
                kept_rows = (~ended).view(-1, G).any(1).repeat_interleave(G).nonzero()[:, 0]
                if not len(kept_rows):
                    break
                model.reorder(kept_rows, state)
                active, history, ended = active[kept_rows], history[kept_rows], ended[kept_rows]
        longest = int(lengths.max())
        tokens, logprobs = tokens[:, :longest], logprobs[:, :longest]
        return Decoded(tokens, logprobs.sum(1) / lengths, lengths, logprobs, endings)

    def _note_endings(
        self, job: Job, new: Tensor, active: Tensor, ended: Tensor, endings: list[str], last: bool
    ) -> Tensor:
        """Which of the texts (A, n) end here, (A,) bool; writes down why, where they have not ``ended`` before."""
        eos = job.is_eos(new[:, -1])
        stop = self._stops(new) if self.settings.stop_strings else torch.zeros_like(eos)
        ending = eos | stop | last
        for i in (ending & ~ended).nonzero()[:, 0].tolist():
            endings[int(active[i])] = "eos" if eos[i] else "stop" if stop[i] else "length"
        return ending

    def _draws(self, job: Job) -> Tensor:
        """(R, N) numbers in [0, 1), prefix by prefix from the seed and the prefix's id or content."""
        prefix = job.prefix
        rows = []
        for b in range(prefix.batch):
            if job.row_ids is not None:
                row_id: Any = job.row_ids[b]
                name = repr(row_id.item() if hasattr(row_id, "item") else row_id).encode()  # np.int64(7) is 7
            else:
                given = prefix.ids if prefix.embeds is None else prefix.embeds
                assert given is not None
                own = given[b] if prefix.mask is None else given[b][prefix.mask[b].to(given.device)]
                name = own.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            digest = hashlib.sha256(name).digest()
            generator = np.random.default_rng([self.settings.seed, int.from_bytes(digest[:16], "little")])
            rows.append(generator.random((self.settings.num_return_sequences, self.settings.max_new_tokens)))
        return torch.from_numpy(np.concatenate(rows)).to(job.model.device, widest_float(job.model.device))


def _drawn(logits: Tensor, numbers: Tensor) -> Tensor:
    """The tokens (A,) at which the cumulated probabilities of (A, V) pass ``numbers`` (A,) in [0, 1)."""
    cumulated = logits.to(numbers.dtype).softmax(1).cumsum(1)  # (A, V)
    # Scaled by the last sum, which rounding leaves beside 1; the first sum ABOVE the number, so that a token of
    # probability 0 is never drawn.
    chosen = torch.searchsorted(cumulated, (numbers * cumulated[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp_max(logits.shape[1] - 1)
