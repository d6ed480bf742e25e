"""Run Llama-like models on CPUs in a library of our own, compiled on the machine that it runs on."""
