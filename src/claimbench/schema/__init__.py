"""The values that cross a JSON or YAML file, each with the model that validates it. Imports nothing above it."""
