"""The explorer: a page on this machine, and the read-only HTTP API below it, which programs may use too."""
