"""Where weights come from and what they become on disk: the parts of `fetch` and `shard`."""
