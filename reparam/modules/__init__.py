"""Questions about any torch module: its hooks, its buffers, and whether it runs the forward of its class."""
