"""Turns between a policy and an environment: which tokens are kept, which inserted, and when it ends."""

import asyncio

import pytest
import transformers

from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto.config import UserError
from finecut.trainer.rollout import environment
from finecut.trainer.rollout.continuation import TurnRenderer
from finecut.trainer.rollout.engine_config import Generation
from finecut.trainer.rollout.episode import Prompt, Turns, play
from finecut.trainer.rollout.sample import FinishReason
from finecut.trainer.rollout.sampling import SamplingParameters
from finecut.trainer.rollout.testing_environments import Insistent

TURN_END = 4
SAMPLING = SamplingParameters(max_new_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


class Scripted:
    """A policy that says given turns, and keeps what it was asked."""

    def __init__(self, *turns, reason=FinishReason.STOP):
        self.turns, self.reason, self.requests = list(turns), reason, []

    async def __call__(self, request):
        self.requests.append(request)
        ids = self.turns[len(self.requests) - 1]
        version = len(self.requests)
        logs = tuple(-0.1 * i for i, _ in enumerate(ids, 1))
        return Generation(ids, logs, (version,) * len(ids), {version: f"w{version}"}, self.reason)


def run(tokenizer, policy, times=5, max_turns=4, limit=1000, factory=Insistent, prompt=(1, 50, 51)):
    turns = Turns(factory, TurnRenderer(tokenizer), max_turns, limit)
    return asyncio.run(play(Prompt("r", prompt, {"times": times}), 0, 11, SAMPLING, policy, turns))


def test_sampled_ids_are_kept_and_only_the_reply_is_rendered(tokenizer):
    # Letter by letter, as no tokenizer would write it but a policy may.
    first, second = (*tokenizer.convert_tokens_to_ids(list("the")), TURN_END), (80, TURN_END)
    assert tuple(tokenizer(tokenizer.decode(first), add_special_tokens=False)["input_ids"]) != first
    policy = Scripted(first, second)
    sample = run(tokenizer, policy, times=1)
    inserted = tuple(tokenizer("\n<|im_start|>user\nGo on, 0 more.<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert sample.answer_ids == first + inserted + second
    assert policy.requests[1].prompt_ids == (1, 50, 51, *first, *inserted)
    assert sample.loss_mask == (True,) * 4 + (False,) * len(inserted) + (True,) * 2
    assert sample.num_sampled_tokens == 6 and sample.num_turns == 2 and sample.finish_reason is FinishReason.STOP
    assert sample.policy_versions == (1,) * (4 + len(inserted)) + (2, 2) and sample.weights == {1: "w1", 2: "w2"}
    assert sample.log_probabilities[4 : 4 + len(inserted)] == (0.0,) * len(inserted)
    assert len({request.seed for request in policy.requests}) == 2


def test_a_conversation_is_what_the_template_makes_of_it(tokenizer):
    """Where a policy happens to sample the tokenizer's own ids, the whole is the template's rendering."""
    told = tokenizer("Paris, a city on the river", add_special_tokens=False)["input_ids"]
    question = {"role": "user", "content": "What is the capital of France?"}
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True)["input_ids"]
    sample = run(tokenizer, Scripted((*told, TURN_END), (*told, TURN_END)), times=1, prompt=tuple(prompt))
    said = {"role": "assistant", "content": "Paris, a city on the river"}
    messages = [question, said, {"role": "user", "content": "Go on, 0 more."}, said]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    ours = list(sample.prompt_ids + sample.answer_ids)
    assert whole[: len(ours)] == ours and not tokenizer.decode(whole[len(ours) :]).strip()


def test_it_ends_at_max_turns_without_a_trailing_reply(tokenizer):
    sample = run(tokenizer, Scripted(*[(60, TURN_END)] * 9), times=9, max_turns=3)
    assert sample.num_turns == 3 and sample.finish_reason is FinishReason.MAX_TURNS and sample.loss_mask[-1]


def test_it_ends_where_the_next_turn_would_not_fit(tokenizer):
    sample = run(tokenizer, Scripted(*[(60, TURN_END)] * 9), times=9, limit=40)
    assert sample.finish_reason is FinishReason.LENGTH and sample.loss_mask[-1]
    assert len(sample.prompt_ids + sample.answer_ids) <= 40


def test_an_answer_that_was_cut_off_is_not_replied_to(tokenizer):
    policy = Scripted((60, 61), reason=FinishReason.LENGTH)
    assert run(tokenizer, policy).finish_reason is FinishReason.LENGTH and len(policy.requests) == 1


def test_end_of_text_ends_the_conversation(tokenizer):
    sample = run(tokenizer, Scripted((60, tokenizer.eos_token_id)))
    assert sample.num_turns == 1 and sample.finish_reason is FinishReason.STOP


def test_the_environment_reads_text_without_special_tokens(tokenizer):
    made = []
    run(tokenizer, Scripted((60, TURN_END)), times=0, factory=lambda record: made.append(Insistent(record)) or made[0])
    assert made[0].heard == [tokenizer.decode([60])]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    rewriting = transformers.AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    rewriting.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ('!' if not loop.last else '') + m['content'] }}"
        "{% endfor %}"
    )
    with pytest.raises(UserError, match="writes an assistant turn differently once another message follows"):
        run(rewriting, Scripted((60, TURN_END)))


def broken(record):
    class Broken:
        def reply(self, answer):
            return record["reply"]() if callable(record["reply"]) else record["reply"]

    return Broken()


@pytest.mark.parametrize(
    "reply, reason",
    [
        (lambda: 1 / 0, "the environment failed on record r: ZeroDivisionError"),
        ("text", "returned str for record r; it must be a Reply"),
        (environment.Reply(), "said nothing for record r and is not done"),
    ],
)
def test_what_an_environment_does_wrong_is_said_plainly(tokenizer, reply, reason):
    turns = Turns(broken, TurnRenderer(tokenizer), 4, 100)
    prompt = Prompt("r", (1,), {"reply": reply})
    with pytest.raises(UserError, match=reason):
        asyncio.run(play(prompt, 0, 1, SAMPLING, Scripted((60, TURN_END)), turns))


@pytest.mark.parametrize(
    "path, reason",
    [
        ("nowhere", "must have the form package.module:name"),
        ("no.such.module:Environment", "importing no.such.module failed: ModuleNotFoundError"),
        ("finecut.trainer.rollout.environment:Nothing", "has no class or function 'Nothing'"),
    ],
)
def test_an_unknown_environment_is_said_plainly(path, reason):
    with pytest.raises(UserError, match=f"multi_turn.environment: '{path}'.*{reason}"):
        environment.load(path)


def test_an_environment_is_loaded_by_its_import_path():
    assert environment.load("finecut.trainer.rollout.testing_environments:Insistent") is Insistent


def test_an_empty_answer_is_refused(tokenizer):
    with pytest.raises(UserError, match="record r: the engine returned an empty answer"):
        run(tokenizer, Scripted(()))
