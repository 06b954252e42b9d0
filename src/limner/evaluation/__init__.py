"""Caption metrics and their controls, before and after, the quality of a data set."""

from limner.evaluation.cider import CiderD, DocumentFrequency, cider_d
from limner.evaluation.ptb import ptb_tokenize
from limner.evaluation.scoring import Scorer, score

__all__ = ["CiderD", "DocumentFrequency", "Scorer", "cider_d", "ptb_tokenize", "score"]
