"""Beam search: several texts at once, the best of which survive.

The rules are those of transformers' generate (5.23, `GenerationMixin._beam_search`), down to its float32
arithmetic, so that tokens and scores are equal to its own:

- The score of a finished text is the sum of its log-probabilities / length ** length_penalty; the length counts
  the end-of-text token and not the prefix.
- Each step keeps max(2, 1 + number of end-of-text ids) x num_beams candidates, so that enough unfinished ones
  remain; a finishing one counts only among the first num_beams.
- In the first step all beams are the same text: all but the first begin at -1e9.

Letters in the shape comments:
    A  prefixes still searched     G  num_beams     K  candidates a step     N  max_new_tokens     V  vocabulary
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.decoding.decoder import NOTHING_LEFT, Decoded, Decoder, Job
from limner.decoding.settings import BeamSettings

IMPOSSIBLE = -1e9
ENDINGS = ("cancelled", "eos", "stop", "length")
_RUNNING, _EOS, _STOP, _LENGTH = range(4)


@dataclass
class Texts:
    """Some texts of every prefix, best first. All but ``history`` are filled with neutral values where unused."""

    history: Tensor  # (A, n, T0 + N) prompt ids that the rules look at, then the tokens
    logprobs: Tensor  # (A, n, N) the model's own, of every token
    scores: Tensor  # (A, n)
    lengths: Tensor  # (A, n)
    endings: Tensor  # (A, n) index into ENDINGS

    def pick(self, indices: Tensor) -> Texts:
        """The texts (A, n') at these places (A, n')."""
        return Texts(*(_gather(value, indices) for value in vars(self).values()))

    def beside(self, other: Texts) -> Texts:
        """These and then those."""
        return Texts(*(torch.cat(pair, 1) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def keep(self, rows: Tensor) -> Texts:
        """Those of these prefixes only."""
        return Texts(*(value[rows] for value in vars(self).values()))


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """values (A, n, ...) at indices (A, n') -> (A, n', ...)."""
    return values[torch.arange(len(values), device=values.device)[:, None], indices]


class BeamSearchDecoder(Decoder[BeamSettings]):
    """Beam search as transformers' generate does it; ``num_beams`` 1 is a greedy search with beam scores."""

    kind = BeamSettings

    @torch.no_grad()
    def _run(self, job: Job) -> Generator[Tensor, None, Decoded]:
        settings, model = self.settings, job.model
        G, N = settings.num_beams, settings.max_new_tokens
        running, T0 = self._beginning(job)
        finished = running.pick(torch.zeros_like(running.lengths))  # nothing is: all at IMPOSSIBLE
        finished.scores = torch.full_like(running.scores, IMPOSSIBLE)
        improvable = torch.ones(job.prefix.batch, dtype=torch.bool, device=model.device)  # (A,)
        active = torch.arange(job.prefix.batch, device=model.device)  # (A,) which prefix of the batch
        results: list[Texts | None] = [None] * job.prefix.batch
        state: Any = None
        for n in range(N):
            if job.cancel():
                break
            if state is None:
                logits, state = model.prefill(job.prefix, N, G)  # (A, V)
                model.reorder(torch.arange(len(active), device=model.device).repeat_interleave(G), state)
                logits = logits[:, None].expand(-1, G, -1)
            else:
                logits = model.step(running.history[:, :, T0 + n - 1].flatten(), state).unflatten(0, (-1, G))
            job.watch(logits.flatten(0, 1))
            candidates, beams = self._candidates(job, running, logits, T0, n)
            mute = ~(candidates.scores[:, 0] > float("-inf"))
            if bool((mute & (finished.endings == _RUNNING).all(1)).any()):
                raise ValueError(NOTHING_LEFT)
            ends = candidates.endings != _RUNNING  # (A, K)
            finished = self._merge(finished, candidates, ends, improvable, n)
            # An ended text cannot go on: the best others do.
            scores = candidates.scores + ends.float() * IMPOSSIBLE
            places = scores.topk(G, dim=1).indices  # (A, G)
            running = candidates.pick(places)
            running.scores = scores.gather(1, places)
            improvable &= self._can_improve(running, finished, n + 1)
            done = ~improvable | ends.all(1)
            if settings.early_stopping is True:
                done |= (finished.endings != _RUNNING).all(1)
            for i in done.nonzero()[:, 0].tolist():
                results[int(active[i])] = finished.keep(torch.tensor([i]))
            kept = (~done).nonzero()[:, 0]
            if not len(kept):
                active = active[kept]
                break
            rows = (torch.arange(len(active), device=model.device)[:, None] * G + beams.gather(1, places))[kept]
            model.reorder(rows.flatten(), state)
            if len(kept) < len(active):
                active, improvable = active[kept], improvable[kept]
                running, finished = running.keep(kept), finished.keep(kept)
        for i, b in enumerate(active.tolist()):  # only after a cancellation
            results[b] = _best_so_far(running, finished, settings.length_penalty).keep(torch.tensor([i]))
        decoded = self._decoded(job, [texts for texts in results if texts is not None], T0)
        yield from decoded.tokens.T
        return decoded

    def _beginning(self, job: Job) -> tuple[Texts, int]:
        """Every prefix G times without a token, and how many prompt ids stand in the history."""
        G, N, device = self.settings.num_beams, self.settings.max_new_tokens, job.model.device
        history, T0 = job.history(N)
        A = len(history)
        scores = torch.zeros(A, G, device=device)
        scores[:, 1:] = IMPOSSIBLE
        whole = torch.zeros(A, G, dtype=torch.int64, device=device)
        return Texts(
            history[:, None].repeat(1, G, 1), torch.zeros(A, G, N, device=device), scores, whole, whole.clone()
        ), T0

    def _candidates(self, job: Job, running: Texts, logits: Tensor, T0: int, n: int) -> tuple[Texts, Tensor]:
        """The K best continuations by one token of each prefix's G texts, and which text (A, K) each continues."""
        A, G, V = logits.shape
        own = logits.float().log_softmax(-1)  # (A, G, V)
        changed = job.rules.apply(own.reshape(A * G, V), running.history[:, :, : T0 + n].flatten(0, 1), n)
        totals = changed.view(A, G, V) + running.scores[..., None]  # (A, G, V)
        K = max(2, 1 + len(job.eos)) * G
        scores, places = totals.view(A, G * V).topk(K, dim=1)  # (A, K)
        beams, tokens = places // V, places % V
        candidates = running.pick(beams)
        candidates.history[:, :, T0 + n] = tokens
        candidates.logprobs[:, :, n] = own.view(A, G * V).gather(1, places)
        candidates.scores = scores
        candidates.lengths = torch.full_like(places, n + 1)
        candidates.endings = self._endings(job, candidates, T0, n)
        return candidates, beams

    def _endings(self, job: Job, candidates: Texts, T0: int, n: int) -> Tensor:
        """(A, K): how each candidate ends with its last token, or `_RUNNING`."""
        endings = torch.full_like(
            candidates.lengths, _LENGTH if n + 1 == self.settings.max_new_tokens else _RUNNING
        )
        new = candidates.history[:, :, T0 : T0 + n + 1]  # (A, K, n + 1)
        if self.settings.stop_strings:
            endings[self._stops(new.flatten(0, 1)).view(endings.shape)] = _STOP
        endings[job.is_eos(new[..., -1])] = _EOS
        return endings

    def _merge(self, finished: Texts, candidates: Texts, ends: Tensor, improvable: Tensor, n: int) -> Texts:
        """The G best of the finished texts and of the candidates that have just ended."""
        G = self.settings.num_beams
        counts = ends.clone()
        counts[:, G:] = False  # the others were only kept so that enough unfinished ones remain
        scores = candidates.scores / (n + 1) ** self.settings.length_penalty
        if self.settings.early_stopping is True:
            scores += (finished.endings != _RUNNING).all(1, keepdim=True).float() * IMPOSSIBLE
        scores += (~improvable)[:, None].float() * IMPOSSIBLE
        scores += (~counts).float() * IMPOSSIBLE
        ended = Texts(
            candidates.history,
            candidates.logprobs,
            scores,
            candidates.lengths,
            candidates.endings.masked_fill(~counts, _RUNNING),
        )
        both = finished.beside(ended)
        return both.pick(both.scores.topk(G, dim=1).indices)

    def _can_improve(self, running: Texts, finished: Texts, length: int) -> Tensor:
        """(A,): whether the best unfinished text could still beat the worst finished one."""
        settings = self.settings
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens  # where a long text is divided by most
        best = running.scores[:, :1] / length**settings.length_penalty
        worst = finished.scores.min(1, keepdim=True).values
        worst = torch.where(finished.endings != _RUNNING, worst, IMPOSSIBLE)
        return (best > worst).any(1)

    def _decoded(self, job: Job, results: list[Texts], T0: int) -> Decoded:
        """The best texts of all prefixes, in the order of the batch."""
        columns = zip(*(vars(texts).values() for texts in results), strict=True)
        count = self.settings.num_return_sequences
        whole = Texts(*(torch.cat(parts)[:, :count].flatten(0, 1) for parts in columns))
        longest = int(whole.lengths.max())
        past = torch.arange(longest, device=whole.lengths.device) >= whole.lengths[:, None]
        return Decoded(
            whole.history[:, T0 : T0 + longest].masked_fill(past, job.pad),
            whole.scores,
            whole.lengths,
            whole.logprobs[:, :longest].masked_fill(past, 0.0),
            [ENDINGS[i] for i in whole.endings.tolist()],
        )


def _best_so_far(running: Texts, finished: Texts, length_penalty: float) -> Texts:
    """Finished texts, best first, then unfinished ones: what a cancelled search has to say."""
    unfinished = running.pick(
        torch.arange(running.scores.shape[1], device=running.scores.device)[None].expand_as(running.lengths)
    )
    unfinished.scores = running.scores / running.lengths.clamp_min(1) ** length_penalty
    both = finished.beside(unfinished)
    is_finished = both.endings != _RUNNING
    order = (both.scores + is_finished.float() * -IMPOSSIBLE).argsort(dim=1, descending=True, stable=True)
    return both.pick(order[:, : running.scores.shape[1]])
