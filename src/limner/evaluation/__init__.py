"""Caption metrics and their controls, before and after, the quality of a data set."""

from limner.evaluation.cider import CiderD, cider_d
from limner.evaluation.scoring import Scorer, score
from limner.words.ptb import ptb_tokenize
from limner.words.tf_idf import DocumentFrequency

__all__ = ["CiderD", "DocumentFrequency", "Scorer", "cider_d", "ptb_tokenize", "score"]
