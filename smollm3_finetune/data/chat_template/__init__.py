"""A chat template applied to conversations: tokens, loss mask, reasoning, dates."""
