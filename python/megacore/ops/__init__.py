"""Operations: one module per op, with autograd and a plain-PyTorch reference beside it."""
