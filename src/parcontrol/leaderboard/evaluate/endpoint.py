"""An OpenAI-compatible endpoint as a model, through the harness's own clients."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

from parcontrol.leaderboard.evaluate.errors import EvaluationError, ModelRefusedError
from parcontrol.leaderboard.evaluate.location import model_directory
from parcontrol.leaderboard.evaluate.model_spec import Job

_CHAT, _COMPLETIONS = "/chat/completions", "/completions"
_SECONDS_TO_ANSWER = 60.0


class Endpoint(NamedTuple):
    """An endpoint that answers.

    Attributes:
        lm: The harness's client.
        likelihoods: Whether it gives the log-probabilities of a prompt, and we have its tokenizer to count with.
        chat: Whether it takes messages instead of a prompt.
    """

    lm: Any
    likelihoods: bool
    chat: bool


def open_endpoint(job: Job) -> Endpoint:
    """Asks an endpoint one question and returns a client for it.

    Raises:
        ModelRefusedError: The address is none of a completions endpoint, or it refuses the question.
        EvaluationError: It does not answer.
    """
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    class Completions(_DistinctSamples, LocalCompletionsAPI):
        pass

    class ChatCompletions(_DistinctSamples, LocalChatCompletion):
        pass

    url = check_address(job.spec.base_url)
    headers = {"Authorization": f"Bearer {job.endpoint_key}"} if job.endpoint_key else {"Accept": "application/json"}
    concurrent = 1 if job.batch_size == "auto" else job.batch_size
    common = {"base_url": url, "model": job.spec.model, "num_concurrent": concurrent, "header": headers}
    common |= {"seed": job.conditions.seed}
    if url.endswith(_CHAT):
        _ask(url, headers, {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}, job)
        return Endpoint(ChatCompletions(tokenizer_backend=None, **common), likelihoods=False, chat=True)
    answer = _ask(url, headers, {"prompt": "Hello there", "max_tokens": 1, "logprobs": 1, "echo": True}, job)
    if job.spec.tokenizer is None:
        lm = Completions(tokenizer_backend=None, tokenized_requests=False, **common)
        return Endpoint(lm, likelihoods=False, chat=False)
    tokenizer = str(model_directory(job.spec.tokenizer, None))
    # Token ids are sent, so that the endpoint splits prompt and continuation where we do.
    lm = Completions(tokenizer=tokenizer, tokenizer_backend="huggingface", tokenized_requests=True, **common)
    return Endpoint(lm, likelihoods=_gives_prompt_logprobs(answer), chat=job.spec.chat_template)


class _DistinctSamples:
    """Gives every sampled request a seed of its own.

    The harness sends one seed with all requests, and an endpoint that honours it answers the same prompt with the same
    "sample" each time: then every answer agrees with itself, and a hallucination looks consistent.
    """

    sampled = 0

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._create_payload(*args, **kwargs)  # type: ignore[misc]
        if payload["temperature"] > 0:
            payload["seed"] += self.sampled
            self.sampled += 1
        if payload.get("top_k") == 0:  # no limit, which is OpenAI's default and has no name there
            del payload["top_k"]
        return payload


def check_address(url: str | None) -> str:
    """Returns the address of a completions endpoint.

    Raises:
        ModelRefusedError: It is none.
    """
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https") or not parts.path.endswith(_COMPLETIONS) or parts.username:
        shown = (url or "").rpartition("@")[2]  # a password is not repeated
        raise ModelRefusedError(
            f"endpoint {shown!r}: give the full address without a password, http(s)://…{_COMPLETIONS} or http(s)://…{_CHAT}"
        )
    assert url
    return url


def _ask(url: str, headers: dict[str, str], question: dict[str, Any], job: Job) -> dict[str, Any]:
    body = {"model": job.spec.model, "temperature": 0, **question}
    try:
        response = requests.post(url, json=body, headers=headers, timeout=_SECONDS_TO_ANSWER)
    except requests.RequestException as error:
        raise EvaluationError(f"endpoint {url} does not answer: {type(error).__name__}") from error
    if not response.ok and "echo" in question:  # some refuse what they do not support
        plain = {name: value for name, value in question.items() if name not in ("echo", "logprobs")}
        return _ask(url, headers, plain, job)
    if not response.ok:
        kind = EvaluationError if response.status_code >= 500 or response.status_code == 429 else ModelRefusedError
        raise kind(f"endpoint {url} answers {response.status_code} {response.reason} when {job.spec.model!r} is asked")
    try:
        answer = response.json()
    except ValueError as error:
        raise ModelRefusedError(f"endpoint {url} does not answer with JSON") from error
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise ModelRefusedError(f"endpoint {url} answers without `choices`: it is not OpenAI-compatible")
    return answer


def _gives_prompt_logprobs(answer: dict[str, Any]) -> bool:
    """Whether the answer holds log-probabilities of the prompt's tokens beside those of the one new token."""
    logprobs = answer["choices"][0].get("logprobs") or {}
    return len(logprobs.get("token_logprobs") or ()) > 1 and bool(logprobs.get("top_logprobs"))
