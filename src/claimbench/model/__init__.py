"""The models: what an architecture costs (`cost`)."""
