"""The dataset on disk: its lines and names, reading and writing them, and what must not contradict itself."""
