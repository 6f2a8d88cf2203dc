"""The dataset on disk: records, names, files, and what contradicts itself in them."""
