"""Sources in, WebDataset shards with inclusion probabilities out. Internal: import `infineg`."""

import os

# Nothing calls home. huggingface_hub reads it when it is first imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
