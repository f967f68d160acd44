"""The models of the training study in memory, and what is done with them: pools of candidates, answers, measures.

Everything is SmolLM2-135M-Instruct in float32. The gold reward is the demo's reward model: the same network with a head
fitted on judged answers. Answers are cut after a few tokens, and the gold reward judges them as they are cut.
"""

import copy
import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.study.batched import BatchedSampler
from jobs.study.cells import Size
from jobs.study.worlds import WorldSettings
from pipeline import schema as s
from pipeline.config import ClassifierReward, Evaluate, Generate, Prompts, Storage, Tokens, TorchModel
from pipeline.data.place import Place
from pipeline.demo.models import build_reward_model, ensure_smollm2
from pipeline.errors import ConfigError
from pipeline.models.loading import load_causal_lm
from pipeline.rewards.classifier import ClassifierBackend
from pipeline.selfplay.candidates import GenerateCandidates, PromptRenderer
from pipeline.selfplay.held_out import split_held_out
from pipeline.selfplay.sampler import load_decoder
from pipeline.selfplay.seeds import by_hash, read_prompts
from pipeline.steps.annotate import AnnotateResponses, TokeniseResponses

CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template without the system turn that it adds, which is a third of a short dialogue."""

NEUTRAL: Final = (
    "The river rises in the hills north of the town and runs south for about sixty miles before it meets the sea. In "
    "spring the water is high, because snow melts on the upper slopes, and the low fields near the bridge are often "
    "flooded for a week or two. Farmers in the valley grow barley, oats and apples, and they keep sheep on the steeper "
    "ground. A small railway was built in the last century to carry slate from the quarries to the harbour. It closed "
    "when the quarries closed, but part of the line is now a path for walkers. The town has a market on Thursdays, two "
    "schools, a library and a museum that shows tools, maps and photographs from the time of the railway."
)
"""Text that has nothing to do with the prompts: what training does to it is a side effect."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a policy does on the held-out prompts, and on neutral text.

    gold: gold reward of its answer to each prompt; None where the answer is empty.
    tokens: mean tokens of an answer.
    kl: mean over answers of log p(answer) - log p_start(answer), a KL of sequences in nats.
    perplexity, accuracy: of next tokens of the neutral text.
    """

    gold: tuple[float | None, ...]
    tokens: float
    kl: float
    perplexity: float
    accuracy: float


class Lab:
    """Models and prompts of one run of the study."""

    def __init__(self, size: Size, prompts: Path, work: Path) -> None:
        self.size, self.work = size, work
        self.base = ensure_smollm2()
        self.tokens = Tokens(max_length=512, chat_template=CHATML)
        self._gold = build_reward_model(self.base, self.base.parent)
        self._prompts = prompts

    def section(self, policy: Path) -> TorchModel:
        """The section of a config that names a policy."""
        return TorchModel(model=str(policy), dtype="float32", num_gpus=self.size.num_gpus)

    def load(self, policy: Path) -> Any:
        """A policy in memory."""
        return load_causal_lm(self.section(policy)).eval().requires_grad_(requires_grad=False)

    def with_adapter(self, model: Any, adapter: Path) -> Any:
        """A copy of a policy with an adapter merged into it."""
        from peft import PeftModel

        merged = PeftModel.from_pretrained(copy.deepcopy(model), str(adapter)).merge_and_unload()
        return merged.eval().requires_grad_(requires_grad=False)

    def save(self, model: Any, folder: Path) -> None:
        """Save a policy as a directory of its own, never half there."""
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            model.save_pretrained(name)
            self._decoder.tokenizer.save_pretrained(name)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(name, folder.with_suffix(".part"), dirs_exist_ok=True)
        folder.with_suffix(".part").rename(folder)

    def prompts_of(self, seed: int) -> tuple[pa.Table, pa.Table, pa.Table]:
        """The prompts of a seed: of the pool, held out, and of start policies. None is nearly a held-out one."""
        evaluate = Evaluate(num_prompts=self.size.num_held_out)
        rest, held_out, _ = split_held_out(self._all_prompts, evaluate, seed)
        ids, num = by_hash(rest.column(s.ID).to_pylist(), seed + 1_000_000), self.size.num_prompts
        if len(ids) <= num:
            raise ConfigError(f"{len(ids)} short prompts are left to train on; wanted {num + 1} with --prompts.")
        parts = ids[:num], ids[num : num + num // 2]
        pool, warm = (rest.filter(pc.is_in(rest.column(s.ID), pa.array(part))) for part in parts)
        return pool, held_out, warm

    def answers(self, model: Any, prompts: pa.Table, num_responses: int, seed: int) -> pa.Table:
        """Prompts to annotated candidates: answers of a policy with their gold rewards."""
        sampling = self._generate.model_copy(update={"num_responses": num_responses, "seed": seed})
        renderer = PromptRenderer(self._decoder.tokenizer, self.tokens, self.size.max_prompt_tokens)
        candidates = GenerateCandidates(BatchedSampler(model, self._decoder), renderer, sampling)(prompts)
        tokenise, annotate = self._judge
        return annotate(tokenise(candidates))

    def outcome(self, model: Any, start: Any, held_out: pa.Table, seed: int) -> Outcome:
        """Measure a policy. Its answers have the random numbers of `seed`, the same for every policy."""
        rows = self.answers(model, held_out, 1, seed).to_pylist()
        gold = [(row[s.RESPONSE_REWARDS] or [None])[0] for row in rows]
        texts = [(row[s.PROMPT], (row[s.RESPONSES] or [""])[0]) for row in rows[: self.size.num_kl]]
        ids = torch.tensor([self._decoder.tokenizer(NEUTRAL)["input_ids"]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        log_probs = torch.log_softmax(logits.float(), dim=-1).gather(1, ids[0, 1:, None])
        return Outcome(
            gold=tuple(None if value is None else round(value, 4) for value in gold),
            tokens=float(np.mean([(row[s.RESPONSE_TOKENS] or [0])[0] for row in rows])),
            kl=0.0 if model is start else self._log_probs(model, texts) - self._log_probs(start, texts),
            perplexity=float(torch.exp(-log_probs.mean())),
            accuracy=float((logits.argmax(dim=-1) == ids[0, 1:]).double().mean()),
        )

    def _log_probs(self, model: Any, texts: list[tuple[Any, str]]) -> float:
        """Mean over answers of their summed log-probabilities; temperature 1."""
        template = self._decoder.tokenizer
        total = 0.0
        for prompt, answer in texts:
            start = template.apply_chat_template(
                prompt, chat_template=CHATML, add_generation_prompt=True, return_dict=False
            )
            ids = torch.tensor([start + template(answer, add_special_tokens=False)["input_ids"]], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=ids, logits_to_keep=len(ids[0]) - len(start) + 1).logits[0, :-1]
            total += float(torch.log_softmax(logits.float(), -1).gather(1, ids[0, len(start) :, None]).sum())
        return total / len(texts)

    @cached_property
    def _decoder(self) -> Any:
        return load_decoder(self.section(self.base))

    @cached_property
    def _generate(self) -> Generate:
        return Generate(engine="transformers", temperature=0.8, max_tokens=self.size.max_tokens)

    @cached_property
    def _judge(self) -> tuple[TokeniseResponses, AnnotateResponses]:
        section = ClassifierReward(
            backend="classifier",
            model=str(self._gold),
            dtype="float32",
            num_gpus=self.size.num_gpus,
            chat_template=CHATML,
        )
        backend = ClassifierBackend(section)
        return TokeniseResponses(backend.tokenizer(self.tokens)), AnnotateResponses(backend.scorer(), reads_ids=True)

    @cached_property
    def _all_prompts(self) -> pa.Table:
        """The different prompts that are short enough."""
        place = Place.open(str(self._prompts), Storage())
        table = read_prompts(place.fs, place.root, Prompts(path=str(self._prompts))).table
        table = table.filter(pc.equal(table.column(s.STATUS), s.KEPT))
        renderer = PromptRenderer(self._decoder.tokenizer, self.tokens, self.size.max_prompt_tokens)
        fits = [isinstance(renderer.token_ids(turns), np.ndarray) for turns in table.column(s.PROMPT).to_pylist()]
        return table.filter(pa.array(fits))


def seen_rewards(annotated: pa.Table, world: WorldSettings, seed: int) -> pa.Table:
    """The rewards as a proxy sees them in a world: `reward_noise`, `length_bias` and `reward_scale` are as there.

    Amounts are in standard deviations of the gold reward within prompts.
    """
    rng = np.random.default_rng([seed, 1])
    rewards = annotated.column(s.RESPONSE_REWARDS).to_pylist()
    lengths = annotated.column(s.RESPONSE_TOKENS).to_pylist()
    unit = math.sqrt(float(np.mean([np.var([r for r in row if r is not None]) for row in rewards if row])))
    seen = [
        [
            None
            if reward is None
            else world.reward_scale
            * (reward + unit * (world.reward_noise * rng.normal() + world.length_bias * math.log(length / 16) / 0.5))
            for reward, length in zip(row, of_row, strict=True)
        ]
        for row, of_row in zip(rewards, lengths, strict=True)
    ]
    at = annotated.column_names.index(s.RESPONSE_REWARDS)
    return annotated.set_column(at, annotated.schema.field(at), pa.array(seen, annotated.schema.field(at).type))
