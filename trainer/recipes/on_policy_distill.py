"""On-policy distillation (Agarwal et al., 2024; Gu et al., 2024): the student learns from its own samples.

    prompts --> engines (student) --> answers --> teacher: distribution over each token --+
                   ^                     +------> student: the same ----------------------+--> divergence --> student
                   +-------------------------- weights of the next version ---------------------------------------+

    collect   consumes: prompts, engines at a version; produces: answers on every rank
              waits for: the engines; unblocks: learn
    learn     consumes: answers; produces: the student's next version
              waits for: nothing outside the ranks; unblocks: publish
    publish   consumes: the student; produces: engines at its version; waits for: their checksums; unblocks: collect

The divergence, its temperature and its top-k are those of distill.py; reverse KL is the papers' choice. Gradients do
not go through sampling, as in both papers' practice.
"""

from __future__ import annotations

import time

from finecut.trainer.config import StagePlace
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.distill import DistillationLoss
from finecut.trainer.recipes.supervised import TrainingResult
from finecut.trainer.rl import judging, opening, reinforcement, scoring
from finecut.trainer.rl.config import OnPolicyDistillConfig
from finecut.trainer.rl.judging import Judged
from finecut.trainer.rl.session import Session
from finecut.trainer.teachers.teacher import LiveTeacher


def run(config: OnPolicyDistillConfig, place: StagePlace, devices: Devices, liveness: Liveness) -> TrainingResult:
    """Trains the student and writes it to `place.artifact`. Collective. Raises as `grpo.run` does."""
    with opening.opened(config, place, devices, liveness) as s:
        with s.start.phase("teacher"):
            teacher = reinforcement.load_frozen_role(s, locate_model(place.roles["teacher"]))
        objective = DistillationLoss(config.distill, LiveTeacher(teacher))
        with s.started():
            for step in s.steps():
                judged = judging.judge(s, scoring.unscored(s.rollouts.collect(step)), step)
                s.rollouts.rest()
                learnt = learn(s, judged, objective, step)
                s.finish_step(step, judged.metrics | learnt, judged.num_tokens)
            return s.finish()


def learn(s: Session, judged: Judged, objective: DistillationLoss, step: int) -> dict[str, float]:
    """Changes the student: one pass over the batch."""
    s.at(step, "train")
    began = time.perf_counter()
    return s.policy.update(judged.batches, objective, step) | {"train_seconds": time.perf_counter() - began}
