"""The QA scorer: whether the samples answer questions about a sentence as its passage does.

Multiple-choice question answering and generation (MQAG) with the four models of the paper: one asks a question with its
answer about the sentence, one invents wrong answers, one chooses among them given a passage, and one says how likely a
passage answers the question at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from parcontrol.leaderboard.scoring.batches import by_length, classify
from parcontrol.leaderboard.scoring.models import AbsentError, ScorerModel, load_model
from parcontrol.leaderboard.scoring.selfcheck.passage import Inconsistency, Passage

# Beams and questions for a sentence. The paper samples five questions; beams give the same ones in every run.
_QUESTIONS = 3
_NEW_TOKENS = 128
_OPTIONS = 4
# The paper's beta: how likely the answerer chooses the same option where the passages agree, and another where not.
_RELIABILITY = 0.8
_UNDECIDED = 0.5
_FILLER = re.compile(r"<extra_id_\d+>")  # of T5, which sometimes writes it for a separator


class QaModels(NamedTuple):
    """Folders, or names on the Hub."""

    questions: str = "potsawee/t5-large-generation-squad-QuestionAnswer"
    distractors: str = "potsawee/t5-large-generation-race-Distractor"
    answering: str = "potsawee/longformer-large-4096-answering-race"
    answerability: str = "potsawee/longformer-large-4096-answerable-squad2"


class Question(NamedTuple):
    """A question with two to four options."""

    text: str
    options: tuple[str, ...]


class QaScorer:
    """P(the sentence is not factual), given how many samples answer its questions alike; the paper's equation 10.

    With alpha_n the probability that sample n answers the question, N_same and N_other the sums of alpha_n over the
    samples that choose the same option as the passage and another one, and gamma = beta / (1 - beta):
    gamma^N_other / (gamma^N_same + gamma^N_other). Averaged over the questions; 0.5 where no question came out.
    """

    name = "qa"

    def __init__(self, batch_size: int = 16, models: QaModels | None = None) -> None:
        self.batch_size = batch_size
        self.models = models or QaModels()

    @cached_property
    def asks(self) -> ScorerModel:
        """Writes `question <sep> answer` for a sentence."""
        return _generator(self.models.questions)

    @cached_property
    def distracts(self) -> ScorerModel:
        """Writes `wrong <sep> wrong <sep> wrong` for `question <sep> answer <sep> passage`."""
        return _generator(self.models.distractors)

    @cached_property
    def answers(self) -> ScorerModel:
        """Chooses among options."""
        return load_model(AutoModelForMultipleChoice, self.models.answering)

    @cached_property
    def doubts(self) -> ScorerModel:
        """Says whether a passage answers a question: one logit."""
        loaded = load_model(AutoModelForSequenceClassification, self.models.answerability)
        if loaded.model.config.num_labels != 1:
            raise AbsentError(f"{self.models.answerability} has {loaded.model.config.num_labels} outputs instead of 1")
        return loaded

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        """Scores sentences."""
        asked = self.questions(sentences, passage.text)
        scores = [
            fmean(self._question_score(question, passage) for question in questions) if questions else _UNDECIDED
            for questions in asked
        ]
        return Inconsistency(scores, scores)

    def sources(self) -> list[dict[str, str | None]]:
        """The four models."""
        return [model.source for model in (self.asks, self.distracts, self.answers, self.doubts)]

    def questions(self, sentences: Sequence[str], passage: str) -> list[list[Question]]:
        """Returns the questions about every sentence, each with the right option first."""
        drafts = _generate(self.asks, sentences, self.batch_size, _QUESTIONS)
        pairs = [
            (index, parts[0], parts[1])
            for index, texts in enumerate(drafts)
            for parts in (_split(self.asks, text) for text in texts)
            if len(parts) == 2
        ]
        separator = f" {self.distracts.tokenizer.sep_token} "
        prompts = [separator.join((question, answer, passage)) for _, question, answer in pairs]
        wrong = _generate(self.distracts, prompts, self.batch_size, 1)
        asked: list[list[Question]] = [[] for _ in sentences]
        for (index, question, answer), (text,) in zip(pairs, wrong, strict=True):
            options = tuple(dict.fromkeys([answer, *_split(self.distracts, text)]))[:_OPTIONS]
            if len(options) > 1:
                asked[index].append(Question(question, options))
        return asked

    def _question_score(self, question: Question, passage: Passage) -> float:
        own, *others = self.choices(question, [passage.text, *passage.samples])
        answerable = self.answerability(question.text, passage.samples)
        balance = sum(alpha if choice != own else -alpha for choice, alpha in zip(others, answerable, strict=True))
        gamma = _RELIABILITY / (1 - _RELIABILITY)
        return 1 / (1 + math.exp(-balance * math.log(gamma)))

    @torch.inference_mode()
    def choices(self, question: Question, passages: Sequence[str]) -> list[int]:
        """Returns which option is chosen given each passage."""
        tokenizer, options = self.answers.tokenizer, question.options
        chosen = [0] * len(passages)
        for batch in by_length(passages, max(1, self.batch_size // len(options))):
            contexts = [f"{passages[index]} {tokenizer.cls_token} {question.text}" for index in batch]
            inputs = tokenizer(
                [context for context in contexts for _ in options],
                list(options) * len(batch),
                padding=True,
                truncation="longest_first",
                max_length=self.answers.max_length,
                return_tensors="pt",
            ).to(self.answers.device)
            shaped = {name: tensor.view(len(batch), len(options), -1) for name, tensor in inputs.items()}
            for index, choice in zip(batch, self.answers.model(**shaped).logits.argmax(dim=-1).tolist(), strict=True):
                chosen[index] = choice
        return chosen

    def answerability(self, question: str, passages: Sequence[str]) -> list[float]:
        """Returns how likely each passage answers the question."""
        texts = [f"{question} {self.doubts.tokenizer.sep_token} {passage}" for passage in passages]
        probabilities: list[float] = classify(self.doubts, texts, self.batch_size)[:, 0].sigmoid().tolist()
        return probabilities


def _generator(repo: str) -> ScorerModel:
    loaded = load_model(AutoModelForSeq2SeqLM, repo)
    if loaded.tokenizer.sep_token is None:
        raise AbsentError(f"{repo} has no separator token")
    return loaded


@torch.inference_mode()
def _generate(scorer: ScorerModel, texts: Sequence[str], batch_size: int, count: int) -> list[list[str]]:
    """Returns the `count` best outputs for every text; inputs are cut at their end."""
    outputs: list[list[str]] = [[] for _ in texts]
    for batch in by_length(texts, max(1, batch_size // count)):
        inputs = scorer.tokenizer(
            [texts[index] for index in batch],
            padding=True,
            truncation=True,
            max_length=scorer.max_length,
            return_tensors="pt",
        ).to(scorer.device)
        ids = scorer.model.generate(
            **inputs, do_sample=False, num_beams=count, num_return_sequences=count, max_new_tokens=_NEW_TOKENS
        )
        written = scorer.tokenizer.batch_decode(ids, skip_special_tokens=False)
        for position, index in enumerate(batch):
            outputs[index] = written[position * count : (position + 1) * count]
    return outputs


def _split(scorer: ScorerModel, text: str) -> list[str]:
    """Returns the parts of an output between separators, empty ones left out."""
    tokenizer = scorer.tokenizer
    for token in (tokenizer.pad_token, tokenizer.eos_token):
        text = text.replace(token, "")
    parts = _FILLER.sub(tokenizer.sep_token, text).split(tokenizer.sep_token)
    return [part.strip() for part in parts if part.strip()]
