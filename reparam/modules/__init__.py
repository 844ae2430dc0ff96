"""What any torch module runs and holds: its hooks, its buffers, whether its class is what runs."""
