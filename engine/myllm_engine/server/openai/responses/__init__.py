"""OpenAI's Responses API: conversations as lists of items, answers that are stored, event streams."""
