"""Answers to prompts, one by one or in a conversation."""
