"""The reference transformer: three families of models in plain PyTorch."""
