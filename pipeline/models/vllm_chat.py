"""Chat completions by vLLM in this process, in the form in which a server with OpenAI's API answers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from pipeline.config import VllmJudgeReward
from pipeline.drops import Reason
from pipeline.errors import ConfigError
from pipeline.models.loading import load_tokenizer
from pipeline.models.packing import Completion
from pipeline.models.templates import ChatTemplate
from pipeline.models.vllm_engine import environment, import_vllm, on_cpu
from pipeline.models.vllm_scoring import VllmScoringEngine

_NOT_OF_SAMPLING: Final = frozenset({"model", "messages", "logprobs", "top_logprobs", "chat_template_kwargs"})


class VllmChat(VllmScoringEngine):
    """Answers requests. Raises as VllmScoringEngine."""

    otherwise: ClassVar[str] = "set backend: judge with the urls of a server"

    def __init__(self, section: VllmJudgeReward) -> None:
        wanted = environment(section.num_threads, section.engine_args)
        import_vllm(wanted, key=f"backend: {section.backend}", otherwise=self.otherwise)
        further: dict[str, Any] = {"enable_prefix_caching": True}
        if on_cpu():  # where a prompt is read in one step: see `arguments_of`
            most = max(section.token_budget, section.max_length)
            further |= {"enable_chunked_prefill": False, "max_num_batched_tokens": most}
        super().__init__(section, section.max_length, **further)
        kwargs = section.parameters.get("chat_template_kwargs")
        self._template = ChatTemplate(load_tokenizer(section), None, kwargs=kwargs)

    def complete(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | str]:
        """The answer to each request, or why there is none.

        Raises a ConfigError if vLLM does not take the keys of the requests, and a ModelError if it died.
        """
        prompts = [self._prompt(request) for request in requests]
        asked = {index: prompt for index, prompt in enumerate(prompts) if isinstance(prompt, Completion)}
        found: list[Any] = list(prompts)
        if asked:
            sampling = [self._sampling(requests[index]) for index in asked]
            outputs = self._outputs(
                lambda engine, given: engine.generate(given, sampling, use_tqdm=False), [*asked.values()]
            )
            for index, output in zip(asked, outputs, strict=True):
                found[index] = _answer(output.outputs[0])
        return found

    def _prompt(self, request: Mapping[str, Any]) -> Completion | str:
        made = self._template.outcome(lambda: self._template.ids(request["messages"], add_generation_prompt=True), "")
        if isinstance(made, Reason):
            return f"the chat template of the judge ends with {made}"
        if len(made) >= self._max_length:
            return "the request leaves no room for an answer within max_length"
        return Completion(ids=made, start=0)

    def _sampling(self, request: Mapping[str, Any]) -> Any:
        keys = {name: value for name, value in request.items() if name not in _NOT_OF_SAMPLING}
        try:
            return self._vllm.SamplingParams(logprobs=request.get("top_logprobs"), **keys)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward.parameters: vLLM does not take them: {error}.") from None


def _answer(sample: Any) -> dict[str, Any]:
    choice = {"message": {"content": sample.text}, "finish_reason": sample.finish_reason}
    if sample.logprobs is not None:
        choice["logprobs"] = {
            "content": [_token(*each) for each in zip(sample.token_ids, sample.logprobs, strict=True)]
        }
    return {"choices": [choice]}


def _token(token: int, likeliest: Mapping[int, Any]) -> dict[str, Any]:
    """One token of an answer, and those that could have stood in its place."""
    of = {each: {"token": found.decoded_token, "logprob": found.logprob} for each, found in likeliest.items()}
    return of[token] | {"top_logprobs": [*of.values()]}
