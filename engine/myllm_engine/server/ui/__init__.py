"""Serve a page for people: a chat with the model, and a live view of the engine."""
