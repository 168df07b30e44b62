"""A user's own network, as an entry of a models folder: see `cellar_models.export`."""
