"""Distillation by its definitions in float64, and the recipe held to them. Shapes: N trained tokens, V vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from google.protobuf import text_format

from finecut.dataprep.shards import SplitReader
from finecut.proto import job_pb2
from finecut.proto.config import resolve
from finecut.trainer.config import Precision, StagePlace
from finecut.trainer.data.batches import IGNORED, targets_of
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel import mesh
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import optimization
from finecut.trainer.recipes.config import DistillConfig
from finecut.trainer.recipes.distill import Distill
from finecut.trainer.recipes.supervised import Setup, build_model
from finecut.trainer.recipes.supervised_data import open_data


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is compared, and how."""

    divergence: str = "FORWARD_KL"
    temperature: float = 1.0
    top_k: int | None = None
    hard_label_weight: float = 0.0

    @property
    def fields(self) -> str:
        """As in a job file."""
        top_k = "" if self.top_k is None else f"top_k: {self.top_k}"
        return (
            f"divergence: {self.divergence} temperature: {self.temperature} {top_k}"
            f" hard_label_weight: {self.hard_label_weight}"
        )


def make_job(
    root: Path, fields: str = "", training: str = "", lora: str = "", storage: str = "runs"
) -> job_pb2.JobConfig:
    """A resolved job with one stage, "distill", of `root`/teacher into `root`/model on `root`/data."""
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


def check(root: Path, variant: Variant, batch: str, world: Devices, fields: str = "", cache: str = "") -> None:
    """One step over all of the data has the definitions' loss and gradients. Collective.

    Args:
      fields: Of the training config.
      cache: The field teacher_cache, where what the teacher says is to be kept.
    """
    training = f"epochs: 1 loss {{ chunk_tokens: 32 }} batch {{ {batch} }} {fields}"
    job = make_job(root, f"{variant.fields} {cache}", training)
    config = DistillConfig.from_proto(job.stages[0].distill)
    devices = mesh.arrange(world, config.training.parallelism)
    source = locate_model(root / "model")
    decoder_config = DecoderConfig.from_folder(source.base)
    data = open_data(root / "data", source, decoder_config, config.training, devices)
    setup = Setup(_place(root), source, decoder_config, Precision.FP32, data, devices)
    recipe, notes = Distill(config).before_model(setup, cast(Any, SimpleNamespace(at=lambda step, phase: None)))
    assert bool(notes) == bool(cache)
    model = build_model(config, decoder_config, source, Precision.FP32, devices)
    objective = recipe.objective(model, setup)
    loss = optimization.forward_backward(model, data.train.step(1).micro_batches, 1.0, devices, objective)
    data.close()
    want_loss, want = expected(root, variant)
    assert abs(loss.mean - want_loss) < 1e-5 * want_loss
    assert loss.metrics.keys() == {"divergence"} | ({"cross_entropy"} if variant.hard_label_weight else set())
    gradients = {name: gather(p.grad) for name, p in named_parameters(model) if p.grad is not None}
    for name, gradient in want.items():
        found = gradients[name][: gradient.shape[0]].double()
        assert (found - gradient).abs().max() < 2e-5 * gradient.abs().max(), name


def expected(root: Path, variant: Variant) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients, written from the definitions of the divergences."""
    student, q_NV, plain_NV, targets_N = _distributions(root / "model", root, variant.temperature)
    with torch.no_grad():
        _, p_NV, _, _ = _distributions(root / "teacher", root, variant.temperature)
    if variant.top_k is not None:
        places = p_NV.argsort(-1, descending=True)[:, : variant.top_k]
        q_NV, p_NV = (torch.cat([x.gather(1, places), 1 - x.gather(1, places).sum(1, True)], 1) for x in (q_NV, p_NV))
    if variant.divergence == "REVERSE_KL":
        loss_N = (q_NV * (q_NV / p_NV).log()).sum(1)
    elif variant.divergence == "JENSEN_SHANNON":
        m_NV = (p_NV + q_NV) / 2
        loss_N = ((p_NV * (p_NV / m_NV).log()).sum(1) + (q_NV * (q_NV / m_NV).log()).sum(1)) / 2
    else:
        loss_N = (p_NV * (p_NV / q_NV).log()).sum(1)
    loss = variant.temperature**2 * loss_N.mean()
    if weight := variant.hard_label_weight:
        loss = (1 - weight) * loss - weight * plain_NV.gather(1, targets_N[:, None]).log().mean()
    loss.backward()
    return loss.item(), {
        "embedding.weight": student.model.embed_tokens.weight.grad,
        "layers.0.attention.q_proj.weight": student.model.layers[0].self_attn.q_proj.weight.grad,
        "head.weight": student.lm_head.weight.grad,
    }


def _distributions(folder: Path, root: Path, temperature: float) -> tuple:
    """Probabilities at trained tokens, [N, V], those at temperature 1, and targets, by `transformers`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    packed = root / "packed"  # the same documents, where the data are packed on the fly
    reader = SplitReader(packed if packed.is_dir() else root / "data", "train")
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


def _place(root: Path) -> StagePlace:
    stage = root / "stage"
    stage.mkdir(exist_ok=True)
    return StagePlace(
        stage="distill",
        config_fingerprint="",
        code_version="",
        accepts_other_code=False,
        model=root / "model",
        data=root / "data",
        artifact=stage / "artifact",
        checkpoints=str(stage / "checkpoints"),
        encryption=None,
        ranks=stage / "ranks",
        tensorboard=stage / "tensorboard",
        events=stage / "events.jsonl",
        roles={"teacher": root / "teacher"},
    )
