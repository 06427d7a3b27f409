"""What is taken for a secret, and where it is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.errors import ManifestError, UsageError
from orchestrator.files import open_files
from orchestrator.manifest import load_manifest
from orchestrator.secrecy import SECRET_NAME, holds_credentials

TEXT = "schema_version: 1\nname: trial\nsuites: {toy: [pass]}\n"
SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "RAY_AUTH_TOKEN",
            "HF_TOKEN",
            "MYTOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "OPENAI_API_KEY",
            "DB_PASS",
            "DB_PASSWORD",
        ),
        *("PGPASSWORD", "azure_client_secret", "WANDB_APIKEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_names_of_secrets(name):
    assert SECRET_NAME.search(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_MAX_AUTOTUNE", "MONKEY", "PASSES", "PWD"]
)
def test_names_of_other_things(name):
    assert not SECRET_NAME.search(name)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("s3://AKIA:abc@bucket/x", True),
        ("s3://bucket/x", False),
        ("s3://bucket/a@b", False),
        ("somelib @ git+https://abc@host/lib", True),
        ("somelib @ git+ssh://git@host/lib", False),
        ("git+ssh://git:abc@host/lib", True),
        ("--index-url https://user:abc@host/simple", True),
        ("somelib==1", False),
        ("http://proxy:8080", False),
    ],
)
def test_uris_with_users(text, holds):
    assert holds_credentials(text) is holds


@pytest.mark.parametrize(
    ("submit", "where"),
    [
        ("{env_vars: {DB_PASS: x}}", "submit.env_vars.DB_PASS"),
        ("{env_vars: {LD_PRELOAD: /x.so}}", "submit.env_vars.LD_PRELOAD"),
        (f"{{env_vars: {{HTTPS_PROXY: 'http://u:{SECRET}@proxy'}}}}", "submit.env_vars.HTTPS_PROXY"),
        (f"{{pip: ['x @ git+https://{SECRET}@host/x']}}", "submit.pip[0]"),
        (f"{{uv: ['x', 'y @ https://u:{SECRET}@host/x']}}", "submit.uv[1]"),
        (f"{{store: 's3://AKIA:{SECRET}@bucket/x'}}", "submit.store"),
    ],
)
def test_a_manifest_may_hold_none(tmp_path, submit, where):
    path = tmp_path / "m.yaml"
    texts = {f"submit: {submit}\n": "submit"} | ({} if "store" in submit else {f"environments: {{e: {submit}}}\n": "environments.e"})
    for text, above in texts.items():
        path.write_text(TEXT + text)
        with pytest.raises(ManifestError) as caught:
            load_manifest(path)
        [problem] = caught.value.problems
        assert problem.path == where.replace("submit", above)
        assert SECRET not in str(problem)


def test_nor_may_the_place_of_results(tmp_path):
    with pytest.raises(UsageError) as caught:
        open_files(f"s3://AKIA:{SECRET}@bucket/x")
    assert SECRET not in str(caught.value)
    path = tmp_path / "m.yaml"
    path.write_text(TEXT)
    command = [sys.executable, "-m", "orchestrator", "submit", str(path), "--kuberay", "--results", f"s3://AKIA:{SECRET}@bucket/x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
