"""One arrow of the chain a file: states in, states out, and what was done. No model runs here."""
