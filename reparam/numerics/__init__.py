"""The precision in which values are computed, and how far two results differ."""
