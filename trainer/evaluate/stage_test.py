"""The evaluate stage on tiny real models: what it measures equals what other code works out."""

import json

import numpy as np
import pytest
import torch
import transformers

from finecut.dataprep.shards import SplitReader
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer import stage as trainer_stage
from finecut.trainer.evaluate import win_rate
from finecut.trainer.evaluate.stage import read_scores
from finecut.trainer.evaluate.testing import make_job, prepare_conversations, prepare_prompts, prepare_sequences
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.huggingface import save_model
from finecut.trainer.models.logits import load_decoder, packed_logits
from finecut.trainer.models.reference import load_reference, reference_logits
from finecut.trainer.rollout.testing import write_tiny_policy

QUESTIONS = ["What is the capital of France?", "How are you?", "Two plus three?", "Why does bread rise?"]
NUM_NEW = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    write_tiny_policy(root / "model")
    write_tiny_policy(root / "other", seed=1)
    prepare_conversations(root, root / "model", [(question, "Paris, of course.") for question in QUESTIONS])
    return root


def evaluate(root, work, *stages, name="measure"):
    return make_job(root, *stages, f'stages {{ name: "{name}" evaluate {{ model: "ROOT/model" {work} }} }}')


def run(job, name="measure"):
    artifact = trainer_stage.run_stage(job, name)
    return {(r.task, r.metric): r for r in artifact.evaluation.results}


def greedy(folder, prompt_ids):
    """Token by token, without a cache, up to a stop token."""
    model, ids = load_decoder(folder), torch.tensor(prompt_ids)
    stops = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    for _ in range(NUM_NEW):
        token = packed_logits(model, [ids])[0][-1].argmax()
        if int(token) in stops:
            break
        ids = torch.cat([ids, token[None]])
    return ids[len(prompt_ids) :].tolist()


def prompts_of(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)["input_ids"]
        for q in QUESTIONS
    ]
    return tokenizer, asked


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


PERPLEXITY = (
    'tasks { name: "held-out" data: "ROOT/runs/test/stages/conversations/artifact" split: "train" perplexity {} }'
)


class TestLoss:
    def test_is_that_of_transformers(self, root):
        results = run(evaluate(root, PERPLEXITY, name="loss"), "loss")
        reader = SplitReader(RunFolder.of(evaluate(root, PERPLEXITY)).artifact("conversations"), "train")
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "model")
        losses = []
        for block in range(len(reader)):
            found = reader.read([block])
            for document in range(found.document_id_NL.max() + 1):
                inside = found.document_id_NL[0] == document
                ids = torch.from_numpy(found.input_ids_NL[0][inside]).long()
                counts = torch.from_numpy(found.loss_mask_NL[0][inside])
                with torch.no_grad():
                    log_p = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
                losses.append(-log_p[counts[1:]])
        mean = torch.cat(losses).mean().item()
        loss, perplexity = results["held-out", "loss"], results["held-out", "perplexity"]
        assert loss.value == pytest.approx(mean, rel=1e-5)
        assert perplexity.value == pytest.approx(np.exp(mean), rel=1e-5)
        assert loss.low < loss.value < loss.high and loss.example_count == len(losses) == 4

    def test_gates_stop_the_workflow_with_a_sentence_and_keep_what_was_found(self, root):
        work = f'{PERPLEXITY} gates: "loss < 0.5" gates: "loss < 1000"'
        job = evaluate(root, work, name="gated")
        with pytest.raises(UserError, match=r"^1 of 2 gates failed: loss < 0.5: loss is \d+\.\d+ \(\d.* to .*\)$"):
            run(job, "gated")
        folder = RunFolder.of(job).stage("gated")
        assert not (folder / "artifact").exists()
        assert {row["metric"] for row in json.loads((folder / "failed" / "scores.json").read_text())} == {
            "loss",
            "perplexity",
        }

    def test_a_gate_compares_with_another_stages_model_and_with_another_evaluation(self, root):
        """The other model learnt nothing, either; noise is added to ours until it is worse for sure."""
        tune = 'stages { name: "sft" sft { model { path: "ROOT/model" } data: "DATA" } }'
        tune = tune.replace("DATA", "ROOT/runs/test/stages/conversations/artifact")
        gate = f'{PERPLEXITY} gates: "loss no worse than @sft"'
        job = evaluate(root, gate, tune, name="equal")
        best = RunFolder.of(job).artifact("sft")
        transformers.AutoModelForCausalLM.from_pretrained(root / "model").save_pretrained(best)
        transformers.AutoTokenizer.from_pretrained(root / "model").save_pretrained(best)
        artifacts.write(best, artifact_pb2.Artifact(stage="sft", model=artifact_pb2.ModelArtifact()))
        run(job, "equal")

        worse = root / "worse"
        model = transformers.AutoModelForCausalLM.from_pretrained(root / "model")
        with torch.no_grad():
            model.lm_head.weight.mul_(8)
        model.save_pretrained(worse)
        transformers.AutoTokenizer.from_pretrained(root / "model").save_pretrained(worse)
        text = gate.replace("@sft", "@equal")
        for name, stages in (("a", (gate, tune)), ("b", (text, tune, job.stages[-1]))):
            work, *others = stages
            said = [
                s if isinstance(s, str) else f'stages {{ name: "equal" evaluate {{ model: "ROOT/model" {gate} }} }}'
                for s in others
            ]
            again = make_job(root, *said, f'stages {{ name: "{name}" evaluate {{ model: "ROOT/worse" {work} }} }}')
            with pytest.raises(UserError, match=r"no worse than @(sft|equal): loss is .*, of @(sft|equal) "):
                trainer_stage.run_stage(again, name)


class TestRanking:
    NUM_ITEMS = 30

    @pytest.mark.parametrize("count", [1, 2])
    def test_is_worked_out_of_all_items(self, tmp_path, count):
        model = write_tiny_policy(tmp_path / "model", vocab_size=500 + self.NUM_ITEMS)
        fields = json.loads((model / "config.json").read_text()) | {"semantic_id_count": self.NUM_ITEMS}
        (model / "config.json").write_text(json.dumps(fields))
        sequences = np.random.default_rng(0).permuted(np.tile(np.arange(30), (6, 1)), axis=1)[:, :8].tolist()
        data = prepare_sequences(tmp_path, model, sequences, self.NUM_ITEMS)
        task = (
            f'tasks {{ name: "next" data: "{data}" split: "train" ranking {{ cutoffs: 3 next_item_count: {count} }} }}'
        )
        results = run(evaluate(tmp_path, task))
        reference = transformers.AutoModelForCausalLM.from_pretrained(model)
        hits, gains, reciprocals = [], [], []
        for sequence in sequences:
            with torch.no_grad():
                scores = reference(torch.tensor([sequence[:-count]]) + 500).logits[0, -1, 500:]
            order = scores.argsort(descending=True).tolist()
            ranks = sorted(order.index(item) for item in sequence[-count:])
            hits.append(any(rank < 3 for rank in ranks))
            ideal = sum(1 / np.log2(2 + k) for k in range(count))
            gains.append(sum(1 / np.log2(2 + rank) for rank in ranks if rank < 3) / ideal)
            reciprocals.append(1 / (1 + ranks[0]))
        assert results["next", "hit_rate_at_3"].value == pytest.approx(np.mean(hits))
        assert results["next", "ndcg_at_3"].value == pytest.approx(np.mean(gains))
        assert results["next", "mrr"].value == pytest.approx(np.mean(reciprocals))

    def test_a_model_without_items_is_refused(self, root):
        task = PERPLEXITY.replace("perplexity {}", "ranking {}")
        with pytest.raises(UserError, match="the model has no ids to rank"):
            run(evaluate(root, task, name="none"), "none")


class TestAnswers:
    """One vLLM start for each model that is asked."""

    @pytest.fixture(scope="class")
    def results(self, root):
        tokenizer, asked = prompts_of(root / "model")
        answers = [tokenizer.decode(greedy(root / "model", ids), skip_special_tokens=True) for ids in asked]
        references = [answers[0].upper(), "wrong", answers[2], "wrong"]
        records = [{"prompt": q, "reference": r.strip() or "x"} for q, r in zip(QUESTIONS, references, strict=True)]
        data = prepare_prompts(root, root / "model", records)
        base = load_decoder(root / "model", output_head=OutputHead(1, initial_std=1.0))
        save_model(base, root / "judge", root / "model", torch.float32)
        write_harness_task(root / "harness")
        job = evaluate(
            root,
            f"""
            tasks {{ name: "quiz" data: "{data}" split: "train" generation {{ max_new_tokens: {NUM_NEW} }} }}
            tasks {{ name: "versus" data: "{data}" split: "train"
                     win_rate {{ opponent: "ROOT/other" judge: "ROOT/judge" max_new_tokens: {NUM_NEW} }} }}
            tasks {{ name: "asked" data: "{data}" split: "train"
                     win_rate {{ opponent: "ROOT/other" judge: "ROOT/other" max_new_tokens: {NUM_NEW} }} }}
            tasks {{ name: "itself" data: "{data}" split: "train" max_examples: 2
                     win_rate {{ opponent: "ROOT/model" judge: "ROOT/judge" max_new_tokens: {NUM_NEW} }} }}
            tasks {{ name: "mine" python: "finecut.trainer.evaluate.testing_tasks:answer_length" }}
            tasks {{ name: "library" lm_eval {{ tasks: "tiny_choice" tasks: "tiny_words" folder: "ROOT/harness" }} }}
            gates: "quiz.accuracy >= 0.5" gates: "mine.length > 0"
            """,
        )
        return job, run(job)

    def test_accuracy_counts_the_answers_that_equal_their_reference(self, results):
        accuracy = results[1]["quiz", "accuracy"]
        assert accuracy.value == 0.5 and accuracy.example_count == 4
        assert 0.1 < accuracy.low < 0.2 and 0.8 < accuracy.high < 0.9  # Wilson's, 2 of 4

    def test_a_reward_model_prefers_what_it_scores_higher(self, root, results):
        _, asked = prompts_of(root / "model")
        tail = [4, *transformers.AutoTokenizer.from_pretrained(root / "model")("\n")["input_ids"]]
        reward = load_reference(root / "judge", num_labels=1)
        scores = [
            [
                reference_logits(reward, [torch.tensor([*ids, *greedy(root / name, ids), *tail])])[0].item()
                for ids in asked
            ]
            for name in ("model", "other")
        ]
        expected = np.mean([ours > theirs for ours, theirs in zip(*scores, strict=True)])
        assert results[1]["versus", "win_rate"].value == expected

    def test_a_chat_model_is_asked_in_both_orders_which_answer_is_better(self, root, results):
        tokenizer, asked = prompts_of(root / "model")
        judge = load_decoder(root / "other")
        a, b = tokenizer("A")["input_ids"][0], tokenizer("B")["input_ids"][0]

        def prefers_first(prompt, first, second):
            said = win_rate.QUESTION.format(prompt=prompt, first=first, second=second)
            turns = [{"role": "user", "content": said}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
            logits = packed_logits(judge, [torch.tensor(ids)])[0][-1]
            return torch.sigmoid(logits[a] - logits[b]).item()

        wins = []
        for prompt in asked:
            ours, theirs = (text_of(tokenizer, greedy(root / name, prompt)) for name in ("model", "other"))
            text = text_of(tokenizer, prompt)
            preference = (prefers_first(text, ours, theirs) + 1 - prefers_first(text, theirs, ours)) / 2
            assert ours != theirs and abs(preference - 0.5) > 1e-4, "or rounding would decide"
            wins.append(preference > 0.5)
        assert results[1]["asked", "win_rate"].value == np.mean(wins)

    def test_against_itself_a_model_wins_half(self, results):
        rate = results[1]["itself", "win_rate"]
        assert (rate.value, rate.example_count) == (0.5, 2)

    def test_a_users_task_names_its_metrics(self, results):
        assert results[1]["mine", "length"].example_count == 2

    def test_lm_eval_runs_tasks_from_local_files(self, root, results):
        """The likelier choice is worked out by hand."""
        reference = load_decoder(root / "model")
        tokenizer, _ = prompts_of(root / "model")
        right = 0
        for question, choices, gold in CHOICES:
            sums = []
            for choice in choices:
                context = tokenizer(question)["input_ids"]
                ids = torch.tensor(tokenizer(f"{question} {choice}")["input_ids"])
                log_p = packed_logits(reference, [ids])[0].log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]
                sums.append(log_p[len(context) - 1 :].sum().item())
            right += int(np.argmax(sums) == gold)
        assert results[1]["library", "tiny_choice_acc"].value == pytest.approx(right / len(CHOICES))
        assert results[1]["library", "tiny_words_exact_match"].value == 0

    def test_what_was_found_is_kept_with_answers_and_numbers_of_examples(self, results):
        folder = RunFolder.of(results[0]).artifact("measure")
        scores = {(s.task, s.metric): s for s in read_scores(folder)}
        assert scores.keys() == results[1].keys()
        assert scores["quiz", "accuracy"].values_N.tolist() == [1, 0, 1, 0]
        answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert sum(answer["task"] == "quiz" for answer in answers) == 4


CHOICES = [
    ("What is the capital?", ["Paris", "bread"], 0),
    ("How are you?", ["blue", "well"], 1),
    ("Who?", ["I", "a"], 0),
]


def write_harness_task(folder):
    folder.mkdir()
    lines = [json.dumps({"question": q, "choices": c, "gold": g}) for q, c, g in CHOICES]
    (folder / "choices.jsonl").write_text("\n".join(lines) + "\n")
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/choices.jsonl
test_split: test
"""
    (folder / "tiny_choice.yaml").write_text(
        f"""task: tiny_choice{common}output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
"""
    )
    (folder / "tiny_words.yaml").write_text(
        f"""task: tiny_words{common}output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""
    )
