"""Greedy, sampling and beam search, written once against a step model."""
