"""In which precision numbers are computed, and how far two results are apart."""
