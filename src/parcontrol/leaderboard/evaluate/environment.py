"""What the evaluating process may see of the worker's environment: a list of names, and nothing else.

The Hub's token is no name on that list. The process also has a home of its own, so that it finds neither the token file
that `hf auth login` leaves, nor ~/.netrc.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Whether a process that has imported torch can be forked: on macOS system libraries forbid it.
FORKS = sys.platform == "linux"

# Proxy addresses are passed on because nothing could be downloaded without them.
ALLOWED = frozenset(
    """
    PATH LANG LC_ALL LC_CTYPE TZ TMPDIR PYTHONPATH PYTHONHASHSEED PYTHONUTF8
    OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS TOKENIZERS_PARALLELISM
    CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_DEVICE_ORDER NVIDIA_VISIBLE_DEVICES LD_LIBRARY_PATH
    PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_ENABLE_MPS_FALLBACK PYTORCH_MPS_HIGH_WATERMARK_RATIO
    HF_ENDPOINT HF_HUB_CACHE HF_DATASETS_CACHE HF_HUB_OFFLINE HF_DATASETS_OFFLINE TRANSFORMERS_OFFLINE
    HF_HUB_DISABLE_XET HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ETAG_TIMEOUT
    HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NLTK_DATA PARCONTROL_MIRROR
    """.split()
)

_CACHES = frozenset({"HF_HUB_CACHE", "HF_DATASETS_CACHE"})


def child_environment(
    home: Path, environment: Mapping[str, str] = os.environ, shared_caches: bool = True
) -> dict[str, str]:
    """Returns the environment of the evaluating process.

    Args:
        home: Its home directory; caches that are not shared go below it.
        environment: The worker's own.
        shared_caches: Whether it uses the caches of the Hub that `environment` names.
    """
    allowed = ALLOWED if shared_caches else ALLOWED - _CACHES
    passed = {name: value for name, value in environment.items() if name in allowed}
    return passed | {
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # the worker shows the progress
        # Asking whether there is a CUDA device must not initialise CUDA, or no forked process could use it.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
