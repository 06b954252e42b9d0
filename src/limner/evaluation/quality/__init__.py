"""The quality of a data set: what is wrong with it, and the ways to mend it without touching the source."""
