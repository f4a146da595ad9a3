"""From params.yaml and studies to a plan, before anything runs. Imports no torch."""
