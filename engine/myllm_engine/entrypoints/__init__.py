"""Let scripts that were written for vLLM start the server by the module's name that they know."""
