"""From a site's sources to its study table. Ibis and DuckDB are used here and nowhere else."""
