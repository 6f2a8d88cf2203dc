"""Pages of runs: tables, figures, model cards."""
