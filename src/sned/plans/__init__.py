"""Plans: what to do to a base model, as data. Knows live models only through `models`."""
