"""Caption metrics and their controls, before and after, the quality of a data set."""
