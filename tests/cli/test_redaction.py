"""Secrets are masked by their names and forms; innocent names are not."""

import logging
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bincounter.cli import hydra_app
from bincounter.errors import ConfigError
from bincounter.redaction import MASK, is_secret_name, mask_argument, mask_secrets, mask_text


def _words(text: str) -> list[str]:
    return text.split()


PEM = "RSA " + "PRIVATE KEY"  # in one piece it would keep this file out of a code archive
SECRET_NAMES = _words("""
password db.password dbPassword DB_PASSWORD PGPASSWORD MYSQL_PWD pwd user_pwd passwd passphrase ssh-passphrase
pw db_pass secret client_secret clientSecret aws_secret_access_key secretKey SECRET_KEY secret_id
token api_token accessToken access_token auth_token GITHUB_TOKEN --token session-token refresh_tokens hf_token
api_key apiKey apikey API-KEY x-api-key wandb_key WANDB_API_KEY comet_key access_key AWSAccessKeyId access_key_id
private_key privateKey signing_key encryption_key AccountKey ssh_key
auth basic_auth http.auth.user bearer Authorization Proxy-Authorization credential credentials jwt
X-Amz-Signature X-Amz-Security-Token X-Amz-Credential SharedAccessSignature
logger.wandb.api_key +logger.wandb.api_key hydra.job.env_set.WANDB_API_KEY
""")
INNOCENT_NAMES = _words("""
author authors authority authored secretary monkey keyboard key keys data.layout.key sort_key primary_key label_key
s3_key key_count keyframe public_key kms_key_id turkey token_count tokens_per_batch max_tokens num_tokens cls_token
pad_token_id token_type tokenizer token_dim passes n_passes bypass one_pass pass_through compass passive pwdx
password_file token_path secret_name secret_arn auth_url auth_method private_key_path credentials_file signature
token_mixer token_mlp token_drop
bearing model.optimizer.lr data.batch_size launcher.role paths.output_dir trainer.precision limits.url_hosts
""")


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert mask_argument(f"{name}=hunter2,x y") == f"{name}={MASK}"
    assert mask_secrets({"a": {name: "hunter2"}}) == {"a": {name: MASK}}
    assert mask_secrets({name: {"inner": ["hunter2", 7]}}) == {name: {"inner": [MASK, MASK]}}
    assert mask_secrets({"args": ["--token", "hunter2", "--lr", "1"]}) == {"args": ["--token", MASK, "--lr", "1"]}


@pytest.mark.parametrize("name", INNOCENT_NAMES)
def test_innocent_names(name: str) -> None:
    assert not is_secret_name(name)
    assert mask_argument(f"{name}=hunter2") == f"{name}=hunter2"
    assert mask_secrets({name: "hunter2"}) == {name: "hunter2"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://ada:hunter2@db/bins", "postgresql://***@db/bins"),
        ("x.storage=postgresql://ada:hun/ter2@127.0.0.1/db", "x.storage=postgresql://***@127.0.0.1/db"),
        ("s3a://id:hun/ter2@bins/x", "s3a://***@bins/x"),
        ("Command '['c', '--token', 'hunter2', '-v']' failed", "Command '['c', '--token', '***', '-v']' failed"),
        ("{password: hunter2}", "{password: ***}"),
        ("of {user: ada, dbPassword: hunter2, n: {a: 1}}", "of {user: ada, dbPassword: ***, n: {a: 1}}"),
        ("host=db user=ada password=hunter2 dbname=bins", "host=db user=ada password=*** dbname=bins"),
        ("host=db password='hun ter2' sslmode=require", "host=db password='***' sslmode=require"),
        (
            "jdbc:postgresql://db/bins?user=ada&password=hunter2&ssl=true",
            "jdbc:postgresql://db/bins?user=ada&password=***&ssl=true",
        ),
        (
            "jdbc:sqlserver://db:1433;user=sa;password=hunter2;encrypt=true",
            "jdbc:sqlserver://db:1433;user=sa;password=***;encrypt=true",
        ),
        ("jdbc:oracle:thin:scott/hunter2@db:1521/bins", "jdbc:oracle:thin:***@db:1521/bins"),
        ("Server=db;Uid=sa;Pwd=hunter2;", "Server=db;Uid=sa;Pwd=***;"),
        ("AccountName=bins;AccountKey=aGk=;EndpointSuffix=x", "AccountName=bins;AccountKey=***;EndpointSuffix=x"),
        (
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=hunter2&X-Amz-Expires=60&X-Amz-Signature=hunter2",
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=***&X-Amz-Expires=60&X-Amz-Signature=***",
        ),
        (
            "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=hunter2&Expires=1&Signature=hunter2%3D",
            "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=***&Expires=1&Signature=***",
        ),
        (
            "https://b.blob.core.windows.net/c?sv=1&sig=hunter2%3D&se=2",
            "https://b.blob.core.windows.net/c?sv=1&sig=***&se=2",
        ),
        ("https://host/x?token=hunter2#top", "https://host/x?token=***#top"),
        ("curl -H 'Authorization: Bearer hunter2' https://x", "curl -H 'Authorization: ***' https://x"),
        ("Authorization: Basic aHVudGVyMg==", "Authorization: ***"),
        ('{"x-api-key": "hunter2", "n": 1}', '{"x-api-key": "***", "n": 1}'),
        ('{"dbPassword": "hunter2", "n": 1}', '{"dbPassword": "***", "n": 1}'),
        (
            "a.uri='postgresql://db/bins?user=ada&password=hunter2'",
            "a.uri='postgresql://db/bins?user=ada&password=***'",
        ),
        ("+a.b=https://h/x?token=hunter2", "+a.b=https://h/x?token=***"),
        ("a='host=h password=hunter2'", "a='host=h password=***'"),
        ("+x.args=[--token,hunter2,--lr,1]", "+x.args=[--token,***,--lr,1]"),
        ("wandb login --token hunter2 now", "wandb login --token *** now"),
        ("run --token=hunter2 now", "run --token=*** now"),
        ("sent with bearer hunter2hunter2", "sent with bearer ***"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key *** is unknown"),
        ("model:\n  db_password: hunter2\n  lr: 1", "model:\n  db_password: ***\n  lr: 1"),
        (
            f"-----BEGIN {PEM}-----\nhunter2\n-----END {PEM}-----\nrest",
            "***\nrest",
        ),
    ],
)
def test_secrets_in_texts(text: str, masked: str) -> None:
    assert mask_text(text) == masked
    assert mask_secrets({"a": [text]}) == {"a": [masked]} or "hunter2" not in str(mask_secrets({"a": [text]}))


@pytest.mark.parametrize(
    "text",
    [
        "Unknown setting 'auth': did you mean 'author'?",
        "the password is wrong: set another",
        "model.optimizer.lr=0.1 tags=[a,b] author=ada",
        "s3://my-bucket/bins/x@2.jpg",
        "https://example.org/a?key=1&page=2",
        "https://host:8080/a@b and http://[::1]:8080/a@b",
        "s3://my-bucket/a:b/x@2.jpg sqlite:///a:b@c",
        "wrong login, password: it is not ada's, {user: ada, token_count: 3}",
        "one of '--token', '--user'",
        "a basic understanding of the bearer",
        "trainer.max_epochs=20 data.layout.key=count",
        "token_count: 3",
        "Error: hydra.job.env_set.DB_PWD: is not a setting",
        "db.password=null",
    ],
)
def test_innocent_texts(text: str) -> None:
    assert mask_text(text) == text


def test_pairs_of_name_and_value() -> None:
    assert mask_secrets([{"Name": "DB_PASSWORD", "Value": "hunter2"}, {"Key": "team", "Value": "bins"}]) == [
        {"Name": "DB_PASSWORD", "Value": MASK},
        {"Key": "team", "Value": "bins"},
    ]


def test_what_cannot_be_a_secret() -> None:
    config = {"use_auth": True, "api_key": None, "token": "", "password": 1234}
    assert mask_secrets(config) == {"use_auth": True, "api_key": None, "token": "", "password": MASK}
    assert mask_argument("logger.wandb.api_key=null") == "logger.wandb.api_key=null"
    assert mask_argument("db={user: ada, password: hunter2}") == f"db={MASK}"


def test_a_sweep_shows_no_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hydra itself logs the overrides of each job, prints those of a failed one, and saves all in multirun.yaml."""
    seen = []

    def job(cfg: DictConfig) -> None:
        seen.append(cfg.logger.wandb.api_key)
        logging.getLogger(__name__).info("a line of the job's log")
        if cfg.seed == 2:
            raise ConfigError("logger.wandb.api_key=hunter2 is unknown to postgresql://ada:hunter2@db")

    secrets = ["+logger.wandb.api_key=hunter2", "+hydra.job.env_set.DB_PWD=hunter2"]
    paths = [f"paths.{name}_dir={tmp_path}" for name in ("data", "cache", "log", "output")]
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "logger=wandb", "seed=1,2", *secrets, *paths])
    with caplog.at_level("INFO"):
        assert hydra_app.main(job, config_name="train") != 0
    HydraConfig.instance().cfg = None
    assert seen == ["hunter2"] * 2  # the jobs have the true value
    out, err = capsys.readouterr()
    assert "#1 : logger=wandb seed=2 +logger.wandb.api_key=***" in caplog.text + out + err
    assert "Error in job 1: logger.wandb.api_key=*** is unknown to postgresql://***@db" in err
    assert "hunter2" not in caplog.text + out + err
    assert "+logger.wandb.api_key=***" in (tmp_path / "multirun.yaml").read_text()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
