"""Adapters for training codebases: BasicSR, neosr, traiNNer-redux, KAIR, Lightning, transformers."""
