"""Do the parts of sampling; `sampler` puts them together."""
