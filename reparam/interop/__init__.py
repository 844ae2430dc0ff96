"""Other people's training loops: BasicSR and its kin, KAIR, Lightning, transformers."""
