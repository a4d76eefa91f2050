"""Tests need no network: the Hub's clients are offline and their caches are a temporary folder."""

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="hf_deit_tests_")
os.environ.update(
    HF_HOME=_CACHE.name,
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    HF_DEIT_TRACEBACK="1",  # where a test fails by an error that nobody foresaw
    OMP_NUM_THREADS="1",  # the models are tiny: a second thread only slows them down
)
