"""What the trainer wants to be told, and what it makes of it for ranks."""

from pathlib import Path
from typing import Any

import pytest

from weft_common.settings import load_settings
from weft_trainer.adapters.kubernetes_manifests import AuthorityFile, SecretKey
from weft_trainer.adapters.report_server import RunTokens
from weft_trainer.rank_environment import RankEnvironment
from weft_trainer.settings import TrainerSettings
from weft_trainer.worker.settings import RankSettings

CLUSTER = {
    "LAUNCHER": "kubernetes",
    "BUCKET_URL": "s3+http://minio:9000/weft",
    "BUCKET_ACCESS_KEY": "the-access-key",
    "BUCKET_SECRET_KEY": "the-secret-key",
    "CACHE_TARGET": "weft-cache:50051",
    "CACHE_TOKEN": "the-cache-token",
    "TOKEN": "the-token",
    "REPORT_TOKEN": "the-report-token",
    "KUBERNETES_NAMESPACE": "ml",
    "KUBERNETES_RANK_IMAGE": "localhost/weft-trainer:1",
    "KUBERNETES_REPORTS_SERVICE": "weft-trainer:50052",
    "KUBERNETES_AUTH_SECRET": "weft-auth",
    "KUBERNETES_BUCKET_SECRET": "weft-bucket",
    "KUBERNETES_RANK_RESOURCES": '{"requests": {"cpu": "1500m"}, "limits": {"cpu": "3"}}',
    "KUBERNETES_TOLERATIONS": '[{"key": "gpu", "operator": "Exists"}]',
    "KUBERNETES_NODE_SELECTOR": '{"pool": "gpu"}',
    "KUBERNETES_PULL_SECRETS": '["pull"]',
    "KUBERNETES_QUEUE": "gpus",
}


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read settings from the variables of a cluster, with changes."""

    def read(**changes: str | None) -> TrainerSettings:
        for name, value in {**CLUSTER, **changes}.items():
            if value is None:
                monkeypatch.delenv(f"WEFT_TRAINER_{name}", raising=False)
            else:
                monkeypatch.setenv(f"WEFT_TRAINER_{name}", value)
        return load_settings(TrainerSettings)

    return read


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK_RETRY_S": "900"}, "make WEFT_TRAINER_RANK_HANG_S longer than WEFT_TRAINER_RANK_RETRY_S"),
        ({"KUBERNETES_NAMESPACE": None}, "WEFT_TRAINER_LAUNCHER=kubernetes needs WEFT_TRAINER_KUBERNETES_NAMESPACE"),
        ({"KUBERNETES_RANK_IMAGE": ""}, "WEFT_TRAINER_KUBERNETES_RANK_IMAGE"),
        ({"REPORT_TOKEN": None, "KUBERNETES_AUTH_SECRET": None}, "REPORT_TOKEN, WEFT_TRAINER_KUBERNETES_AUTH_SECRET"),
        ({"KUBERNETES_BUCKET_SECRET": None}, "WEFT_TRAINER_KUBERNETES_BUCKET_SECRET"),
        (
            {"BUCKET_URL": "file:///bucket", "BUCKET_ACCESS_KEY": None, "BUCKET_SECRET_KEY": None},
            "which pods do not share",
        ),
        ({"KUBERNETES_TLS_SECRET": "tls"}, "WEFT_TRAINER_KUBERNETES_TLS_SECRET turns TLS on in ranks"),
        ({"KUBERNETES_RANK_KIND": "pod"}, "WEFT_TRAINER_KUBERNETES_RANK_KIND"),
        ({"KUBERNETES_TOLERATIONS": "gpu"}, "kubernetes_tolerations"),
        ({"LAUNCHER": "slurm"}, "WEFT_TRAINER_LAUNCHER"),
        ({"REPORT_TOKEN": "two words"}, "WEFT_TRAINER_REPORT_TOKEN"),
    ],
)
def test_settings_that_cannot_start_ranks_are_refused(
    changes: dict[str, str | None], said: str, settings_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with the variable to change."""
    with pytest.raises(SystemExit):
        settings_of(**changes)
    assert said in capsys.readouterr().err


def test_tls_of_the_trainer_and_of_its_calls_go_together(
    settings_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks have one set of TLS files, for the cache and for their reports."""
    pem = tmp_path / "x.pem"
    pem.write_text("x")
    with pytest.raises(SystemExit):
        settings_of(PEERS_TLS_CA=str(pem))
    assert "WEFT_TRAINER_TLS_CERT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        settings_of(PEERS_TLS_CA=str(pem), TLS_CERT=str(pem), TLS_KEY=str(pem))
    assert "WEFT_TRAINER_KUBERNETES_TLS_SECRET" in capsys.readouterr().err
    settings_of(PEERS_TLS_CA=str(pem), TLS_CERT=str(pem), TLS_KEY=str(pem), KUBERNETES_TLS_SECRET="tls")


def test_authority_of_the_bucket_is_for_the_trainer_and_its_ranks(
    settings_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without the other, or two sources for the ranks, is refused; processes of this machine read the same file."""
    pem = tmp_path / "x.pem"
    pem.write_text("x")
    own = {"BUCKET_URL": "s3+https://s3.example.com/weft", "BUCKET_CA": str(pem)}
    with pytest.raises(SystemExit):
        settings_of(**own)
    assert "WEFT_TRAINER_KUBERNETES_BUCKET_CA_CONFIG_MAP" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        settings_of(**{**own, "BUCKET_CA": None}, KUBERNETES_BUCKET_CA_SECRET="s")
    assert "WEFT_TRAINER_BUCKET_CA and" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        settings_of(**own, KUBERNETES_BUCKET_CA_SECRET="s", KUBERNETES_BUCKET_CA_CONFIG_MAP="m")
    assert "exclude each other" in capsys.readouterr().err
    settings = settings_of(**own, KUBERNETES_BUCKET_CA_SECRET=None, KUBERNETES_BUCKET_CA_KEY="root.pem")
    assert settings.kubernetes_pods.bucket_ca == AuthorityFile("", "m", "root.pem")
    assert "WEFT_WORKER_BUCKET_CA" not in RankEnvironment(settings, lambda: "", lambda run: "")("r", 1, 2)
    local = settings_of(**own, LAUNCHER="local")
    assert RankEnvironment(local, lambda: "", lambda run: "")("r", 1, 2)["WEFT_WORKER_BUCKET_CA"] == str(pem)
    assert settings_of(BUCKET_CA=None, KUBERNETES_BUCKET_CA_CONFIG_MAP=None).kubernetes_pods.bucket_ca is None


def test_pods_are_what_the_settings_say(settings_of: Any) -> None:
    """JSON where there is structure; secrets as names and keys, which can be changed."""
    pods = settings_of(KUBERNETES_REPORT_TOKEN_KEY="ranks").kubernetes_pods
    assert (pods.image, pods.queue, pods.pull_secrets) == ("localhost/weft-trainer:1", "gpus", ("pull",))
    assert pods.tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert pods.secrets == {
        "WEFT_WORKER_CACHE_TOKEN": SecretKey("weft-auth", "cache"),
        "WEFT_WORKER_TRAINER_TOKEN": SecretKey("weft-auth", "ranks"),
        "WEFT_WORKER_BUCKET_ACCESS_KEY": SecretKey("weft-bucket", "access-key"),
        "WEFT_WORKER_BUCKET_SECRET_KEY": SecretKey("weft-bucket", "secret-key"),
    }


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ('{"requests": {"cpu": "1500m"}, "limits": {"cpu": "3"}}', "3"),
        ('{"requests": {"cpu": "2500m"}}', "2"),
        ('{"requests": {"cpu": 4}}', "4"),
        ('{"requests": {"cpu": "500m"}}', "1"),
        ("{}", "1"),
    ],
)
def test_threads_of_a_pod_are_those_that_it_asks_for(resources: str, threads: str, settings_of: Any) -> None:
    """The controller's own processors say nothing of a rank's."""
    settings = settings_of(KUBERNETES_RANK_RESOURCES=resources)
    told = RankEnvironment(settings, lambda: "", lambda run: "")("r", 1, 2)
    assert (told["WEFT_WORKER_THREADS"], told["OMP_NUM_THREADS"]) == (threads, threads)


def test_environment_of_a_pod_holds_no_secret(settings_of: Any) -> None:
    """No value of a secret setting stands in it; the Service takes the reports."""
    told = RankEnvironment(settings_of(), lambda: "127.0.0.1:1", lambda run: "run-token")("r", 3, 2)
    assert told["WEFT_WORKER_TRAINER_TARGET"] == "weft-trainer:50052"
    assert told["WEFT_WORKER_ATTEMPT"] == "3"
    written = " ".join(told.values())
    assert not any(secret in written for secret in ("the-", "run-token"))


def test_environment_of_a_process_has_what_it_needs(settings_of: Any) -> None:
    """Tokens by value, reports to this machine, unset things not at all."""
    settings = settings_of(LAUNCHER="local")
    told = RankEnvironment(settings, lambda: "127.0.0.1:7", lambda run: f"token-of-{run}")("r", 1, 2)
    assert told["WEFT_WORKER_TRAINER_TARGET"] == "127.0.0.1:7"
    assert told["WEFT_WORKER_TRAINER_TOKEN"] == "token-of-r"
    assert told["WEFT_WORKER_BUCKET_SECRET_KEY"] == "the-secret-key"
    assert "WEFT_WORKER_TLS_CA" not in told


def test_shared_report_token_is_that_of_every_run(settings_of: Any) -> None:
    """Without one each run has its own."""
    settings = settings_of()
    shared, own = RunTokens(settings.token, settings.report_token), RunTokens(settings.token)
    assert shared.token("a") == shared.token("b") == "the-report-token"
    shared.check("a", "Bearer the-report-token")
    assert own.token("a") != own.token("b")


def test_ranks_are_told_what_the_trainer_is_set_to(settings_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How they read, keep and give up is the trainer's to set; nobody else reaches a pod's environment."""
    settings = settings_of(
        KEEP_CHECKPOINTS="3", MIXED_ROW_GROUPS="5", READ_AHEAD_BYTES="7", RANK_RETRY_S="11", RANK_HANG_S="13",
        RANK_DEVICE="cuda", READ_THREADS="6", KEPT_READ_BYTES="17",
    )  # fmt: skip
    for name, value in RankEnvironment(settings, lambda: "", lambda run: "")("r", 2, 4).items():
        monkeypatch.setenv(name, value)
    told = load_settings(RankSettings)
    assert (told.run, told.attempt, told.mode) == ("r", 2, "train")
    assert (told.keep_checkpoints, told.mixed_row_groups, told.read_ahead_bytes) == (3, 5, 7)
    assert (told.retry_s, told.hang_s, told.device) == (11, 13, "cuda")
    assert (told.read_threads, told.kept_read_bytes) == (6, 17)
