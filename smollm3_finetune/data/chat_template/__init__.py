"""Applying a chat template to conversations: tokens, loss mask, reasoning, dates."""
