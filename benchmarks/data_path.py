"""How fast is the data path, beside the tokenizer alone?

Claim: decompressing, parsing, dealing, encoding, packing and hashing together reach at least 0.9 times the speed of
`tokenizers` encode_batch alone on the same text. Both are measured by turns in one run, over the whole train split;
the ratio is the median of the repeats' ratios. The time of the data path includes opening the stream.

    python benchmarks/data_path.py --corpus DIR --tokenizer DIR --output data_path.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from parcontrol.config import DataConfig
from parcontrol.data import Corpus, TrainStream, open_corpus
from parcontrol.data.documents import deal, read_documents

TARGET = 0.9


def main() -> None:
    """Measures and prints the result as JSON."""
    arguments = _parse_arguments()
    config = DataConfig(
        repo=str(arguments.corpus),
        num_shards=len(list(arguments.corpus.glob("train/*.jsonl.zst"))),
        sequence_length=arguments.sequence_length,
        num_workers=arguments.num_workers,
    )
    result = measure(config, AutoTokenizer.from_pretrained(arguments.tokenizer), arguments.repeats)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def measure(config: DataConfig, tokenizer: PreTrainedTokenizerBase, repeats: int) -> dict[str, Any]:
    """Times both by turns; counting the blocks beforehand warms both up."""
    corpus = open_corpus(config)
    texts = [document.text for document in deal([read_documents(s) for s in corpus.train_shards], config.seed)]
    backend = tokenizer.backend_tokenizer
    blocks = _count_blocks(corpus, tokenizer, config)
    rounds = [
        (
            _seconds(lambda: backend.encode_batch(texts, add_special_tokens=False)),
            _seconds(lambda: _stream(corpus, tokenizer, config, blocks)),
        )
        for _ in range(repeats)
    ]
    ratios = [alone / path for alone, path in rounds]
    ratio = statistics.median(ratios)
    tokens = blocks * config.sequence_length
    return {
        "ratio": ratio,
        "target": TARGET,
        "reached": ratio >= TARGET,
        "ratios": ratios,
        "tokenizer_alone_seconds": [alone for alone, _ in rounds],
        "data_path_seconds": [path for _, path in rounds],
        "data_path_tokens_per_second": tokens / statistics.median(path for _, path in rounds),
        "documents": len(texts),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "tokens": tokens,
        "shards": config.num_shards,
        "num_workers": config.num_workers,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }


def _count_blocks(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> int:
    """Returns how many blocks the corpus fills, which is where the stream says that it ends."""
    with _open_stream(corpus, tokenizer, config) as stream:
        blocks = 0
        try:
            while True:
                stream.next_blocks(1)
                blocks += 1
        except ValueError as error:
            if "smaller than the token budget" not in str(error):
                raise
        return blocks


def _stream(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, config: DataConfig, blocks: int) -> None:
    with _open_stream(corpus, tokenizer, config) as stream:
        for _ in range(blocks):
            stream.next_blocks(1)


def _open_stream(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> TrainStream:
    return TrainStream(
        corpus,
        tokenizer,
        sequence_length=config.sequence_length,
        seed=config.seed,
        num_workers=config.num_workers,
    )


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder in the Pile's layout")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of a tokenizer")
    parser.add_argument("--sequence-length", type=int, default=DataConfig().sequence_length)
    parser.add_argument("--num-workers", type=int, default=DataConfig().num_workers)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
