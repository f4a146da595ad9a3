"""What Snakemake asks, and what a person sees while it runs."""
