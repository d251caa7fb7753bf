"""Replaying a run's data: does the corpus give the tokens that the run says it was trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parcontrol.config import RunConfig
from parcontrol.data.source import LOCAL_REVISION, one_line, open_corpus
from parcontrol.data.stream import TrainStream
from parcontrol.data.tokens import tokenizer_sha256
from parcontrol.mirror import local_copy
from parcontrol.runs import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class VerifiedData:
    """What a replay confirmed.

    Attributes:
        step: Last optimiser step with a provenance record.
        records: Number of records that were compared.
        provenance: The last record: shards with byte ranges, documents and tokens; tokens; sha256.
    """

    step: int
    records: int
    provenance: dict[str, Any]


def verify_run(run: RunDirectory) -> VerifiedData:
    """Deals, tokenises and packs a run's data again and compares each provenance record with the result.

    The run may be finished, interrupted or still going. The dataset is read at the recorded revision.

    Raises:
        ValueError: The first difference between the records and the replay; or the run has no records, or its corpus
            or tokenizer cannot be had.
    """
    config, meta, records = run.read_config(), run.read_meta(), run.read_provenance()
    if not records:
        raise ValueError(f"{run.path} has no provenance records: the run took no step")
    for key in ("dataset_revision", "tokenizer_sha256"):
        if key not in meta:
            raise ValueError(f"{run.path}: meta.json has no {key!r}")
    tokenizer = _load_tokenizer(config, meta)
    _compare(run, "meta.json: tokenizer_sha256", meta["tokenizer_sha256"], tokenizer_sha256(tokenizer))
    corpus = open_corpus(config.data.model_copy(update={"revision": meta["dataset_revision"]}))
    _compare(run, "meta.json: dataset_revision", meta["dataset_revision"], corpus.revision)
    with TrainStream(
        corpus,
        tokenizer,
        sequence_length=config.data.sequence_length,
        seed=config.data.seed,
        num_workers=config.data.num_workers,
    ) as stream:
        for record in records:
            _replay(run, stream, record, config)
    return VerifiedData(records[-1]["step"], len(records), stream.provenance())


def _replay(run: RunDirectory, stream: TrainStream, record: Mapping[str, Any], config: RunConfig) -> None:
    """Takes the stream to where a record was made, and compares."""
    step = f"step {record['step']}"
    missing = {"tokens", "sha256", "shards"} - record.keys()
    if missing:
        raise ValueError(f"{run.path}: the provenance of {step} lacks {', '.join(sorted(missing))}")
    blocks = (record["tokens"] - stream.provenance()["tokens"]) // config.data.sequence_length
    if blocks <= 0 or record["tokens"] != record["step"] * config.tokens_per_step:
        raise ValueError(f"{run.path}: {step} cannot have ended at {record['tokens']} tokens")
    for _ in range(blocks):
        stream.next_blocks(1)
    replayed = stream.provenance()
    for recorded, found in zip(record["shards"], replayed["shards"], strict=False):
        for key in found:
            _compare(run, f"{step}: {key} of {found['shard']}", recorded.get(key), found[key])
    _compare(run, f"{step}: number of shards", len(record["shards"]), len(replayed["shards"]))
    _compare(run, f"{step}: sha256 of the token stream", record["sha256"], replayed["sha256"])


def _compare(run: RunDirectory, what: str, recorded: Any, found: Any) -> None:
    if recorded != found:
        raise ValueError(f"{run.path}: {what}: the run recorded {recorded!r}, the replay finds {found!r}")


def _load_tokenizer(config: RunConfig, meta: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    # The recorded commit is that of what the run started from, which is the named model if nothing else is.
    recorded = LOCAL_REVISION if config.training.init_from else meta.get("model_revision", LOCAL_REVISION)
    revision = config.model.revision if recorded == LOCAL_REVISION else recorded
    source = local_copy("models", config.model.name, config.data.mirror) or config.model.name
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except OSError as error:
        raise ValueError(f"the tokenizer of {str(source)!r} cannot be loaded: {one_line(error)}") from error
