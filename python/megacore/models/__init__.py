"""Models in plain PyTorch; they know no rank."""
