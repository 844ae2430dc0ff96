"""A plain network as a program of a graphics card: passes, and their text in the languages of shaders."""
