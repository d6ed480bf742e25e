"""Speak the API of Hugging Face's text-generation-inference (TGI): `/generate` and its relatives."""
