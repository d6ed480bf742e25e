"""The parts of `myllm_adapters.agentchat`."""
