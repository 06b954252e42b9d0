"""A caption as words: tokenized as the COCO evaluation does it, its n-grams counted and weighed by tf-idf.

Captions are scored by this (evaluation/) and chosen by it (decoding/). Nothing here imports torch, or any other
room of Limner.
"""
