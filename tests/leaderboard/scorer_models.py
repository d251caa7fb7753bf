"""Tiny models that score, with random weights, in the layout of an offline mirror of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    RobertaTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

WORDS = (
    "the a old small bird river stone house night day sees finds breaks mayor opens bridge storm hits coast nobody "
    "was hurt he won left sang prize city year new who what when where and of in to"
).split()
POSITIONS = 64  # tokens that fit into every model here
CLASSES = 2
# Large random weights: texts that differ get opinions that differ.
HIDDEN = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "initializer_range": 0.5}


def save_encoder(directory: Path, layers: int = 2, seed: int = 0) -> Path:
    """Saves a RoBERTa encoder with its tokenizer."""
    tokenizer = roberta_tokenizer()
    tokenizer.save_pretrained(directory)
    _seeded(RobertaModel, _roberta_config(tokenizer, layers), seed).save_pretrained(directory)
    return directory


def save_roberta_classifier(directory: Path, seed: int = 0) -> Path:
    """Saves a RoBERTa classifier with two labels and, like FactKB on the Hub, without a tokenizer."""
    config = _roberta_config(roberta_tokenizer(), 2, num_labels=CLASSES)
    _seeded(RobertaForSequenceClassification, config, seed).save_pretrained(directory)
    return directory


def save_bert(directory: Path, model_class: type[PreTrainedModel], labels: list[str], seed: int = 0) -> Path:
    """Saves a BERT classifier with these labels, with its tokenizer."""
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        **HIDDEN,
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    _seeded(model_class, config, seed).save_pretrained(directory)
    return directory


def save_nli(directory: Path, labels: list[str], seed: int = 0) -> Path:
    """Saves a classifier of text pairs."""
    return save_bert(directory, BertForSequenceClassification, labels, seed)


def save_chooser(directory: Path, seed: int = 0) -> Path:
    """Saves a model that chooses among options."""
    return save_bert(directory, BertForMultipleChoice, ["only"], seed)


def save_doubter(directory: Path, seed: int = 0) -> Path:
    """Saves a classifier with one output."""
    return save_bert(directory, BertForSequenceClassification, ["answerable"], seed)


def save_generator(directory: Path, lessons: dict[str, str]) -> Path:
    """Saves a T5 that has learned to write these outputs for these inputs."""
    pieces = (
        ["<pad>", "</s>", "<unk>", "<sep>", "▁"] + [f"▁{word}" for word in WORDS] + list("abcdefghijklmnopqrstuvwxyz.")
    )
    tokenizer = T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, sep_token="<sep>")
    tokenizer.save_pretrained(directory)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = _seeded(T5ForConditionalGeneration, config, 0)
    inputs = tokenizer(list(lessons), padding=True, return_tensors="pt")
    labels = tokenizer(list(lessons.values()), padding=True, return_tensors="pt").input_ids
    labels[labels == tokenizer.pad_token_id] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, "the lessons were not learned"
    model.eval().save_pretrained(directory)
    return directory


def roberta_tokenizer() -> RobertaTokenizer:
    """A byte-level tokenizer of RoBERTa's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    trained: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])


def bert_tokenizer() -> BertTokenizer:
    """A word-piece tokenizer of BERT's kind."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))})


def _roberta_config(tokenizer: RobertaTokenizer, layers: int, **options: Any) -> RobertaConfig:
    return RobertaConfig(
        **HIDDEN,
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        max_position_embeddings=POSITIONS + tokenizer.pad_token_id + 1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )


def _seeded(model_class: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()
