"""Why a training job failed: our own sentence word for word, or what went wrong around it and the next step."""

import pytest

from bincounter.cloud.aws_errors import describe_failure

FAILURES = {
    "our own sentence": (
        "AlgorithmError: data.source=x does not exist: correct the address, 'as' \"here\", exit code: 2",
        "data.source=x does not exist: correct the address, 'as' \"here\"",
    ),
    "our own sentence, wrapped": (
        'AlgorithmError: ExecuteUserScriptError:\nExitCode 2\nErrorMessage "a warning\ndata.counts=x: say [0,1]\n"\n'
        'Command "/usr/bin/python3 start.py --x 1", exit code: 1',
        "data.counts=x: say [0,1]",
    ),
    "an error nobody foresaw": (
        'AlgorithmError: ExecuteUserScriptError:\nExitCode 1\nErrorMessage "Traceback (most recent call last):\n File\n'
        ':KeyError: \'x\'\n"\nCommand "python"',
        "KeyError: 'x': see the log of the job",
    ),
    "the toolkit's own": (
        "AlgorithmError: Framework Error: \nTraceback (most recent call last):\n x\nOSError: y",
        "OSError: y: see the log",
    ),
    "requirements": (
        'AlgorithmError: InstallRequirementsError:\nExitCode 1\nErrorMessage "ERROR: No matching distribution found '
        'for rich"\nCommand "pip", exit code: 1',
        "No matching distribution found for rich): see that the job reaches a package index",
    ),
    "no word": ("AlgorithmError: Exit Code: 1", "exit code 1"),
    "killed": ("AlgorithmError: , exit code: 137", "data.batch_size"),
    "killed, wrapped": (
        'AlgorithmError: ExecuteUserScriptError:\nExitCode 137\nErrorMessage ""\nExtraInfo "OutOfMemory: Process '
        'killed by SIGKILL (signal 9)"\nCommand "python", exit code: 1',
        "data.batch_size",
    ),
    "memory": (
        "ClientError: Please use an instance type with more memory, or reduce the size of job data.",
        "launcher.instance_type",
    ),
    "no objects": (
        "ClientError: Data download failed:NoSuchKey: No S3 objects found under S3 URL s3://bins/x.",
        "no object under s3://bins/x: correct data.source",
    ),
    "may not read": (
        "ClientError: Data download failed:Unable to download object s3://bins/a.jpg (AccessDenied: Access Denied)",
        "launcher.role may not read s3://bins/a.jpg: give it s3:ListBucket",
    ),
    "may not read, tersely": (
        "ClientError: Data download failed:failed to download data. 403 Forbidden (403): Forbidden",
        "launcher.role may not read the job's data",
    ),
    "may not write": (
        "ClientError: Artifact upload failed:Unable to upload file to s3://out/x (AccessDenied: Access Denied)",
        "launcher.role may not write s3://out/x: give it s3:PutObject",
    ),
    "elsewhere": (
        "ClientError: Artifact upload failed:Unable to upload file (BucketRegionError: incorrect region)",
        "launcher.region",
    ),
    "network": (
        "ClientError: Data download failed:Please ensure that the subnet's route table has a route to an S3 VPC "
        "endpoint or a NAT device, and both the security groups and the subnet's network ACL allow outbound traffic",
        "launcher.request.VpcConfig",
    ),
    "fast file": (
        "ClientError: Data download failed:Failed. For FastFile mode, partial S3 prefix is not supported",
        "end data.source with a slash",
    ),
    "image": (
        "ClientError: Cannot pull algorithm container. Either the image does not exist or its permissions are wrong.",
        "launcher.framework_version or launcher.image",
    ),
    "image again": ("ClientError: CannotPullContainerError: not found", "launcher.image"),
    "capacity": (
        "CapacityError: Unable to provision requested ML compute capacity. Please retry using another.",
        "run the same command again later",
    ),
    "capacity again": (
        "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error.",
        "launcher.instance_type",
    ),
    "role": (
        "ClientError: SageMaker was unable to assume the role 'arn:aws:iam::1:role/x'",
        "act as arn:aws:iam::1:role/x: make",
    ),
    "role of no name": (
        "ClientError: SageMaker is unable to perform: sts:AssumeRole on the role. Check the trust relationship",
        "act as launcher.role: make",
    ),
    "disk": ("ClientError: No space left on device", "launcher.volume_size"),
    "their own": (
        "InternalServerError: We encountered an internal error.  Please try again.",
        "run the same command again",
    ),
    "new": ("ClientError: something new.", "ClientError: something new: see the log of the job"),
    "nothing": ("", "gives no reason: see the log"),
}


@pytest.mark.parametrize(("reason", "said"), FAILURES.values(), ids=FAILURES)
def test_failed_jobs(reason: str, said: str) -> None:
    sentence = describe_failure(reason)
    assert said in sentence and "\n" not in sentence
    if reason.startswith("AlgorithmError: data"):
        assert sentence == said
