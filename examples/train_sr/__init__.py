"""Training and evaluation of super-resolution networks on folders of images."""
