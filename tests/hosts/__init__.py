"""Other people's training codes, tried; see `__main__`."""
