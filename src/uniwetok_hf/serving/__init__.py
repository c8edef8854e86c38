# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""`uniwetok serve`: one model that reads, generates and edits, behind OpenAI's API.

From the inside out:

- `requests`: what is asked and answered
- `jobs`: the steps of each kind of request, as generators that yield the rows they want computed
- `batches`: many rows in one call of the model
- `engine`: the queue, and the one thread that owns the model
- `formats`, `errors`, `pictures`: OpenAI's formats, and what clients send
- `service`, `door`, `api`: from requests to answers; what every request passes; the addresses
- `metrics`, `server`: its numbers, and the process around it
- `ray_engine`, `ray_app`: several models on a cluster, behind the server or as an application of Ray Serve
- `client`: the other side, for the web page
"""
