"""One model behind transformers' own OpenAI-compatible server.

`transformers serve` refuses ParScale checkpoints: its model manager looks an architecture up by name among the classes
that transformers itself exports, and finds none of ours, with remote code allowed or not. Beside that it serves any
model that a request names, and lists what is in the Hub's cache instead of what it serves. So the routes, the handlers
and the generation are transformers' (`transformers.cli.serving`), and only the model manager is replaced, by one that
holds the model of one directory, and what its handlers make of a request is mended.
"""
