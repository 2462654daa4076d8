"""Distillation against a reference in float64; and it learns."""

from pathlib import Path

import pytest
import torch
import transformers
from google.protobuf import text_format

from finecut.dataprep.shards import SplitReader
from finecut.proto import job_pb2
from finecut.proto.config import UserError, resolve
from finecut.trainer.config import Precision
from finecut.trainer.data.batches import IGNORED, targets_of
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import mesh, process_group
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization, registry
from finecut.trainer.recipes.supervised import Setup, build_model
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.recipes.testing import run_ranks, write_tiny_data
from finecut.trainer.stage import run_stage
from finecut.trainer.testing import write_tiny_llama

VARIANTS = {
    "forward": "",
    "forward, hot": "temperature: 3",
    "reverse": "divergence: REVERSE_KL temperature: 2",
    "jensen-shannon": "divergence: JENSEN_SHANNON",
    "top": "top_k: 5 temperature: 2",
    "mixed": "hard_label_weight: 0.3",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_tiny_llama(root / "model", initializer_range=0.1)
    # Of other sizes than the student.
    write_tiny_llama(root / "teacher", seed=1, hidden_size=96, num_hidden_layers=1, initializer_range=0.1)
    write_tiny_data(root / "data", root / "model", 5)
    return root


def make_job(root: Path, fields: str = "", training: str = "", lora: str = "", storage: str = "runs"):
    text = f"""
        name: "tiny"
        storage {{ root: "{root / storage}" }}
        stages {{
          name: "distill"
          distill {{
            model {{ path: "{root / "model"}" {lora} }}
            teacher: "{root / "teacher"}"
            data: "{root / "data"}"
            training {{ optimizer {{ learning_rate: 3e-3 }} schedule {{ warmup_steps: 0 }} {training} }}
            {fields}
          }}
        }}
    """
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=root)


def distributions(folder: Path, root: Path, temperature: float) -> tuple:
    """Probabilities at trained tokens, [N, V], those at temperature 1, and targets, by `transformers`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    reader = SplitReader(root / "data", "train")
    blocks = reader.read(range(len(reader)))
    targets_NL = torch.from_numpy(targets_of(blocks))
    hot, plain, targets = [], [], []
    for n in range(len(reader)):
        for document in range(int(blocks.document_id_NL[n].max()) + 1):
            where_L = torch.from_numpy(blocks.document_id_NL[n] == document)
            logits_LV = model(torch.from_numpy(blocks.input_ids_NL[n]).long()[where_L][None]).logits[0]
            kept_L = targets_NL[n][where_L] != IGNORED
            targets.append(targets_NL[n][where_L][kept_L])
            hot.append((logits_LV[kept_L] / temperature).softmax(-1))
            plain.append(logits_LV[kept_L].softmax(-1))
    return model, torch.cat(hot), torch.cat(plain), torch.cat(targets)


def expected(root: Path, variant: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients, written from the definitions of the divergences."""
    temperature = {"forward, hot": 3.0, "reverse": 2.0, "top": 2.0}.get(variant, 1.0)
    student, q_NV, plain_NV, targets_N = distributions(root / "model", root, temperature)
    with torch.no_grad():
        _, p_NV, _, _ = distributions(root / "teacher", root, temperature)
    if variant == "top":
        places = p_NV.argsort(-1, descending=True)[:, :5]
        q_NV, p_NV = (torch.cat([x.gather(1, places), 1 - x.gather(1, places).sum(1, True)], 1) for x in (q_NV, p_NV))
    if variant == "reverse":
        loss_N = (q_NV * (q_NV / p_NV).log()).sum(1)
    elif variant == "jensen-shannon":
        m_NV = (p_NV + q_NV) / 2
        loss_N = ((p_NV * (p_NV / m_NV).log()).sum(1) + (q_NV * (q_NV / m_NV).log()).sum(1)) / 2
    else:
        loss_N = (p_NV * (p_NV / q_NV).log()).sum(1)
    loss = temperature**2 * loss_N.mean()
    if variant == "mixed":
        loss = 0.7 * loss - 0.3 * plain_NV.gather(1, targets_N[:, None]).log().mean()
    loss.backward()
    return loss.item(), {
        "embedding.weight": student.model.embed_tokens.weight.grad,
        "layers.0.attention.q_proj.weight": student.model.layers[0].self_attn.q_proj.weight.grad,
        "head.weight": student.lm_head.weight.grad,
    }


def check(root: Path, variant: str, batch: str, world: Devices, fields: str = "") -> None:
    job = make_job(root, VARIANTS[variant], f"epochs: 1 loss {{ chunk_tokens: 32 }} batch {{ {batch} }} {fields}")
    recipe = registry.recipe_of(job.stages[0])
    config = recipe.config
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(root / "model")
    decoder_config = DecoderConfig.from_folder(source.base)
    model = build_model(config, decoder_config, source, Precision.FP32, devices)
    data = open_data(root / "data", source, decoder_config, config.training, devices)
    place = type("Place", (), {"roles": {"teacher": root / "teacher"}})()
    objective = recipe.objective(model, Setup(place, source, decoder_config, Precision.FP32, data, devices))
    loss = optimization.forward_backward(model, data.train.step(1).micro_batches, 1.0, devices, objective)
    data.close()
    want_loss, want = expected(root, variant)
    assert loss.mean == pytest.approx(want_loss, rel=1e-5)
    assert loss.metrics.keys() == {"divergence"} | ({"cross_entropy"} if variant == "mixed" else set())
    gradients = {name: gather(p.grad) for name, p in named_parameters(model) if p.grad is not None}
    for name, gradient in want.items():
        found = gradients[name][: gradient.shape[0]].double()
        assert (found - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_those_of_the_definitions(root, variant):
    with process_group.connect() as world:
        check(root, variant, "global_blocks: 8 micro_blocks: 4", world)


def check_as_rank(root: Path) -> None:
    with process_group.connect() as world:
        check(root, "mixed", "global_blocks: 8", world)
        for variant in ("forward, hot", "reverse", "jensen-shannon", "mixed", "top"):
            check(root, variant, "global_blocks: 8 micro_blocks: 4", world, "parallelism { tensor_parallel_size: 2 }")


def test_two_ranks_that_share_or_split_the_models_do_not_matter(root):
    run_ranks(2, check_as_rank, root)


def test_closes_half_of_the_gap_to_the_teacher_on_held_out_data(tmp_path):
    write_tiny_llama(tmp_path / "model", initializer_range=0.1)
    write_tiny_llama(tmp_path / "teacher", seed=1, initializer_range=0.1)
    write_tiny_data(tmp_path / "data", tmp_path / "model", 32, 8)
    job = make_job(tmp_path, "", "max_steps: 40 batch { global_blocks: 8 micro_blocks: 8 }")
    metrics = run_stage(job, "distill").model.metrics
    assert metrics["first_evaluation_divergence"] > 0.1
    assert metrics["first_evaluation_divergence"] == pytest.approx(metrics["first_evaluation_loss"])
    assert metrics["evaluation_divergence"] < 0.5 * metrics["first_evaluation_divergence"]


def test_adapters_close_half_of_the_gap_from_a_trained_start(tmp_path):
    """As distillation is used: the teacher has learned more of what the student has begun to learn."""
    write_tiny_llama(tmp_path / "model")
    write_tiny_data(tmp_path / "data", tmp_path / "model", 32, 8)
    batch = "batch { global_blocks: 8 micro_blocks: 8 } schedule { warmup_steps: 0 }"
    sft = """stages {{ name: "{}" sft {{ model {{ path: "{}" }} data: "{}" training {{
        max_steps: {} optimizer {{ learning_rate: 3e-3 }} {} }} }} }}"""
    text = f"""
        name: "tiny" storage {{ root: "{tmp_path}/runs" }}
        {sft.format("student", tmp_path / "model", tmp_path / "data", 12, batch)}
        {sft.format("teacher", "@student", tmp_path / "data", 40, batch)}
        stages {{ name: "distill" distill {{
          model {{ path: "@student" lora {{ rank: 16 }} }} teacher: "@teacher" data: "{tmp_path / "data"}"
          training {{ max_steps: 40 optimizer {{ learning_rate: 1e-2 }} {batch} }} }} }}
    """
    job = resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=tmp_path)
    student, teacher = (run_stage(job, stage).model.metrics["evaluation_loss"] for stage in ("student", "teacher"))
    assert teacher < student
    metrics = run_stage(job, "distill").model.metrics
    assert metrics["first_evaluation_divergence"] > 0.1
    assert metrics["evaluation_divergence"] < 0.5 * metrics["first_evaluation_divergence"]


def test_a_teacher_with_another_vocabulary_is_refused(root, tmp_path):
    write_tiny_llama(tmp_path / "teacher", vocabulary_size=400)
    job = make_job(root, "", "max_steps: 1", storage=str(tmp_path))
    job.stages[0].distill.teacher = str(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher: .* vocabulary of 400 tokens and the trained model one of 500"):
        run_stage(job, "distill")
