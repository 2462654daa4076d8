"""The job file is valid as it stands, and its labels lead to what the build made."""

from pathlib import Path

from finecut.dataprep import shards
from finecut.dataprep.stage import run_stage
from finecut.proto.config import load_job, load_manifest
from finecut.proto.run import RunFolder

JOB = Path(__file__).parent / "job.textproto"


def test_the_job_resolves_to_built_files(tmp_path: Path) -> None:
    job = load_job(JOB, storage_root=str(tmp_path))
    assert [stage.name for stage in job.stages] == ["prepare", "sft", "export"]
    prepare = job.stages[0].data_prep
    assert Path(prepare.sources[0].paths[0]).is_file()
    assert (Path(prepare.tokenization.tokenizer) / "config.json").is_file()
    assert job.stages[1].sft.model.path == prepare.tokenization.tokenizer


def test_the_manifest_is_its_data_alone(tmp_path: Path) -> None:
    alone = load_manifest(Path(__file__).parent / "data.yaml", storage_root=str(tmp_path))
    assert [stage.name for stage in alone.stages] == ["prepare"]
    data_prep = alone.stages[0].data_prep
    assert data_prep.sources[0].name == "dialogues"
    data_prep.sources[0].ClearField("name")
    assert data_prep == load_job(JOB, storage_root=str(tmp_path)).stages[0].data_prep


def test_its_data_is_prepared_without_a_bad_record(tmp_path: Path) -> None:
    job = load_job(JOB, storage_root=str(tmp_path))
    artifact = run_stage(job, "prepare")
    train, evaluation = artifact.data.splits
    assert train.document_count + evaluation.document_count == artifact.data.sources[0].record_count > 1000
    assert not artifact.data.sources[0].bad_record_count
    assert train.token_count / (train.block_count * artifact.data.block_size) > 0.95
    assert 0.25 < train.trained_token_count / train.token_count < 0.4
    assert len(shards.SplitReader(RunFolder.of(job).artifact("prepare"), "evaluation")) == evaluation.block_count > 1
