"""The data path beside the tokenizer alone.

Claim: decompressing, parsing, dealing, encoding, packing and hashing together reach at least 0.9 times the speed of
`tokenizers` encode_batch alone on the same text, the whole train split. The time of the data path includes opening the
stream.

    python benchmarks/data_path.py --corpus DIR --tokenizer DIR
"""

import statistics
from pathlib import Path

from harness import parser, ratio, report, side_by_side
from transformers import AutoTokenizer

from parcontrol.config import DataConfig
from parcontrol.data import TrainStream, open_corpus
from parcontrol.data.documents import deal, read_documents

CLAIM = 0.9


def open_stream(corpus, tokenizer, config):
    return TrainStream(
        corpus,
        tokenizer,
        sequence_length=config.sequence_length,
        seed=config.seed,
        num_workers=config.num_workers,
    )


def count_blocks(corpus, tokenizer, config):
    """How many blocks the corpus fills, which is where the stream says that it ends."""
    blocks = 0
    with open_stream(corpus, tokenizer, config) as stream:
        try:
            while True:
                stream.next_blocks(1)
                blocks += 1
        except ValueError as error:
            if "smaller than the token budget" not in str(error):
                raise
    return blocks


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--corpus", type=Path, required=True, help="folder in the Pile's layout")
    arguments.add_argument("--tokenizer", required=True, help="folder or Hub id of a tokenizer")
    arguments.add_argument("--num-workers", type=int, default=DataConfig().num_workers)
    args = arguments.parse_args()
    shards = len(list(args.corpus.glob("train/*.jsonl.zst")))
    config = DataConfig(repo=str(args.corpus), num_shards=shards, num_workers=args.num_workers)
    corpus, tokenizer = open_corpus(config), AutoTokenizer.from_pretrained(args.tokenizer)
    texts = [document.text for document in deal([read_documents(s) for s in corpus.train_shards], config.seed)]
    blocks = count_blocks(corpus, tokenizer, config)

    def data_path():
        with open_stream(corpus, tokenizer, config) as stream:
            for _ in range(blocks):
                stream.next_blocks(1)

    def alone():
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)

    seconds = side_by_side({"tokenizer": alone, "data_path": data_path}, args.rounds)
    tokens = blocks * config.sequence_length
    found = {
        "speed_over_tokenizer": ratio(seconds["tokenizer"], seconds["data_path"]),
        "claim": CLAIM,
        "tokens_per_second": tokens / statistics.median(seconds["data_path"]),
        "documents": len(texts),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "tokens": tokens,
        "shards": shards,
        "num_workers": args.num_workers,
    }
    report([found], args.json)


if __name__ == "__main__":
    main()
