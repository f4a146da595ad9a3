"""The stages of the workflow, which the rules of workflow/rules call: each reads files and writes files."""
