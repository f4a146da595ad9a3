"""The reference transformer: decoders of many families in plain PyTorch."""
