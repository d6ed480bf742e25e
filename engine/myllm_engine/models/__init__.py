"""Find, load and check models: folders and hub ids in Hugging Face's format, and GGUF files."""
