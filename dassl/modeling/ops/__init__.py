"""Operations on tensors and models."""
