"""A plain network as a program for graphics cards: passes, and their text in shader languages."""
