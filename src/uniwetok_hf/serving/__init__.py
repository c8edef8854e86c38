# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`uniwetok serve`: one model that reads, generates and edits, behind OpenAI's API.

From the inside out:

- `requests`: what is asked and answered
- `jobs`: the steps of each kind of request, as generators that yield the rows they want computed
- `batches`: many rows in one call of the model
- `engine`: the queue, and the one thread that owns the model
- `api`, `formats`, `pictures`: OpenAI's addresses and formats, uploads
- `server`: the process around it; `ray_engine`: several of them on a cluster
"""
