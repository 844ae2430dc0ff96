"""Other people's training loops: BasicSR and Lightning."""
